//! The public interface: the builder and its settings, words for logs and metrics, and composition
//! with Tower.

mod closures;
mod composition;
mod settings;
mod words;
