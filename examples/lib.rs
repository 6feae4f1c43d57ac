//! Code that the examples share with each other and with the tests.

pub mod common;

/// The service of the gRPC example.
#[cfg(feature = "http")]
pub mod grpc {
    pub mod answers;
}

/// The bus of the example, which the tests hold to the contract of a bus, and its broker.
pub mod own_bus {
    pub mod broker;
    pub mod bus;
}

/// The store of the example, which the tests hold to the contract of a store.
pub mod own_store {
    pub mod store;
}
