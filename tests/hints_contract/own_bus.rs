//! The bus of the example `own_bus`. Each test has a broker of its own.

use examples::own_bus::{broker::Broker, bus::BrokerHints};
use tower_bound_agent::testing::hints::TestBus;

tower_bound_agent::hints_contract_tests!(async || Bus(Broker::start().await.unwrap()));

struct Bus(Broker);

impl TestBus for Bus {
    type Hints = BrokerHints;

    async fn end(&self) -> BrokerHints {
        BrokerHints::new(self.0.address)
    }

    async fn disconnect(&self) -> bool {
        self.0.disconnect();
        true
    }

    async fn send_unreadable(&self) -> bool {
        self.0.publish("no hint");
        true
    }
}
