//! The admin interface: Envoy's paths, in Envoy's shapes.
