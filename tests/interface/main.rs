//! What an application sees: the builder and its settings, words for logs and metrics, and how the
//! layer gets on with the rest of Tower.

mod closures;
mod composition;
mod settings;
mod words;
