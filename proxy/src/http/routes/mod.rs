//! Route tables: virtual hosts by domain, routes in order, and what a route does.
//!
//! A table is immutable. A request keeps the table it was routed with until it ends, whatever discovery does meanwhile.

mod hosts;
mod matcher;
mod ops;
mod table;

pub(super) use hosts::without_port;
pub(super) use matcher::RequestView;
pub(super) use matcher::{query_value, split_query};
pub(super) use ops::Templates;
pub use table::RouteTable;
pub(super) use table::{Selected, Targets};
