//! Message types that Envoy's own tree lacks, by the field numbers of the .proto files under `proto/`.

pub mod istio;
pub mod matcher;

use crate::pb::google::protobuf::Struct;

/// `xds.type.v3.TypedStruct`, and `udpa.type.v1.TypedStruct`, which has the same fields: a message as JSON.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TypedStruct {
    /// Type of the message, as in `google.protobuf.Any`.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The message in its JSON form.
    #[prost(message, optional, tag = "2")]
    pub value: Option<Struct>,
}

impl TypedStruct {
    /// Both full names.
    pub const NAMES: [&str; 2] = ["xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"];
}

/// Gives a message its full name, as prost-build does.
macro_rules! name {
    ($type:ty, $package:literal, $name:literal) => {
        impl prost::Name for $type {
            const PACKAGE: &'static str = $package;
            const NAME: &'static str = $name;

            fn full_name() -> String {
                concat!($package, ".", $name).into()
            }

            fn type_url() -> String {
                concat!("type.googleapis.com/", $package, ".", $name).into()
            }
        }
    };
}
use name;

name!(TypedStruct, "xds.type.v3", "TypedStruct");
