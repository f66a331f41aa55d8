//! Server reflection: the services, and the descriptors of every message that they carry, so that
//! `grpcurl` and its like need no `.proto` files.
//!
//! Answers come out of the descriptor pool that configuration is read with, options and all. A set of
//! its own would cost tens of megabytes.

use std::sync::{Arc, LazyLock};

use isthmus_proto::descriptor_pool;
use prost_reflect::{DescriptorPool, FileDescriptor};
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status, Streaming};

use super::outbound::{self, Outbound};

/// Bytes of a symbol or file name that is looked for. The longest in Envoy's API has 133.
const NAME_BYTES: usize = 1024;

// The protos of the services that Envoy's API does not have.
static OTHERS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let mut pool = DescriptorPool::new();
    for set in [
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ] {
        pool.decode_file_descriptor_set(set)
            .expect("generated with the code: a test reads them");
    }
    pool
});

/// `grpc.reflection.v1.ServerReflection` and its `v1alpha`, which differ in their names only.
#[derive(Debug)]
pub(super) struct ReflectionService {
    services: Arc<[String]>,
    shutdown: watch::Receiver<bool>,
}

impl ReflectionService {
    /// Lists `services`.
    pub(super) fn new(services: Arc<[String]>, shutdown: watch::Receiver<bool>) -> Self {
        Self { services, shutdown }
    }
}

/// What a client asks.
#[derive(Debug)]
enum Question {
    File(String),
    Symbol(String),
    Extension { of: String, number: i32 },
    ExtensionsOf(String),
    Services,
}

/// What it is told.
#[derive(Debug)]
enum Finding {
    File(Vec<u8>),
    Extensions { of: String, numbers: Vec<i32> },
    Services,
    Nothing { code: Code, message: String },
}

impl Question {
    fn answer(self) -> Finding {
        let file = match self {
            Self::File(name) => in_pools(&name, DescriptorPool::get_file_by_name),
            Self::Symbol(name) => in_pools(&name, file_of_symbol),
            Self::Extension { of, number } => in_pools(&of, |pool, of| {
                let message = pool.get_message_by_name(of)?;
                let mut extensions = message.extensions();
                let number = u32::try_from(number).ok()?;
                let found = extensions.find(|extension| extension.number() == number)?;
                Some(found.parent_file())
            }),
            Self::ExtensionsOf(of) => return extensions_of(of),
            Self::Services => return Finding::Services,
        };
        file.map_or_else(nothing, |file| Finding::File(file.encode_to_vec()))
    }
}

fn in_pools<T>(name: &str, find: impl Fn(&DescriptorPool, &str) -> Option<T>) -> Option<T> {
    if name.len() > NAME_BYTES {
        return None;
    }
    find(descriptor_pool(), name).or_else(|| find(&OTHERS, name))
}

fn nothing() -> Finding {
    Finding::Nothing {
        code: Code::NotFound,
        message: "no such file or symbol on this server".to_owned(),
    }
}

fn extensions_of(of: String) -> Finding {
    let numbers = in_pools(&of, |pool, of| {
        let message = pool.get_message_by_name(of)?;
        let numbers = message.extensions().map(|extension| extension.number());
        Some(
            numbers
                .filter_map(|number| i32::try_from(number).ok())
                .collect(),
        )
    });
    numbers.map_or_else(nothing, |numbers| Finding::Extensions { of, numbers })
}

// A symbol is a type, a service or an extension, or `.name` in one of them.
fn file_of_symbol(pool: &DescriptorPool, symbol: &str) -> Option<FileDescriptor> {
    let whole = |symbol: &str| {
        let message = || Some(pool.get_message_by_name(symbol)?.parent_file());
        let service = || Some(pool.get_service_by_name(symbol)?.parent_file());
        let enumeration = || Some(pool.get_enum_by_name(symbol)?.parent_file());
        message().or_else(service).or_else(enumeration)
    };
    let extension = || Some(pool.get_extension_by_name(symbol)?.parent_file());
    whole(symbol).or_else(extension).or_else(|| {
        let (container, member) = symbol.rsplit_once('.')?;
        let is_member = || {
            let message = pool.get_message_by_name(container);
            let service = pool.get_service_by_name(container);
            let enumeration = pool.get_enum_by_name(container);
            message.is_some_and(|it| {
                it.get_field_by_name(member).is_some() || it.oneofs().any(|it| it.name() == member)
            }) || service.is_some_and(|it| it.methods().any(|it| it.name() == member))
                || enumeration.is_some_and(|it| it.get_value_by_name(member).is_some())
        };
        is_member().then(|| whole(container)).flatten()
    })
}

macro_rules! serve {
    ($($version:ident),*) => {$(
        mod $version {
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
            use tonic_reflection::pb::$version::server_reflection_server::ServerReflection;
            use tonic_reflection::pb::$version::{
                ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
                ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
            };

            use super::*;

            #[tonic::async_trait]
            impl ServerReflection for ReflectionService {
                type ServerReflectionInfoStream = Outbound<ServerReflectionResponse>;

                async fn server_reflection_info(
                    &self,
                    requests: Request<Streaming<ServerReflectionRequest>>,
                ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
                    let mut requests = requests.into_inner();
                    let services = Arc::clone(&self.services);
                    let body = outbound::spawn(self.shutdown.clone(), async move |responses| {
                        while let Some(request) = requests.message().await? {
                            let response = respond(request, &services)?;
                            if responses.send(Ok(response)).await.is_err() {
                                break;
                            }
                        }
                        Ok(())
                    });
                    Ok(Response::new(body))
                }
            }

            fn respond(
                request: ServerReflectionRequest,
                services: &[String],
            ) -> Result<ServerReflectionResponse, Status> {
                let question = match request.message_request.clone() {
                    Some(MessageRequest::FileByFilename(name)) => Question::File(name),
                    Some(MessageRequest::FileContainingSymbol(name)) => Question::Symbol(name),
                    Some(MessageRequest::FileContainingExtension(it)) => Question::Extension {
                        of: it.containing_type,
                        number: it.extension_number,
                    },
                    Some(MessageRequest::AllExtensionNumbersOfType(of)) => Question::ExtensionsOf(of),
                    Some(MessageRequest::ListServices(_)) => Question::Services,
                    None => {
                        let message = "message_request is not set, or of a kind that is not known here";
                        return Err(Status::invalid_argument(message));
                    }
                };
                let response = match question.answer() {
                    Finding::File(file) => MessageResponse::FileDescriptorResponse(FileDescriptorResponse {
                        file_descriptor_proto: vec![file],
                    }),
                    Finding::Extensions { of, numbers } => {
                        MessageResponse::AllExtensionNumbersResponse(ExtensionNumberResponse {
                            base_type_name: of,
                            extension_number: numbers,
                        })
                    }
                    Finding::Services => {
                        let name = |name: &String| ServiceResponse { name: name.clone() };
                        let service = services.iter().map(name).collect();
                        MessageResponse::ListServicesResponse(ListServiceResponse { service })
                    }
                    Finding::Nothing { code, message } => MessageResponse::ErrorResponse(ErrorResponse {
                        error_code: code.into(),
                        error_message: message,
                    }),
                };
                Ok(ServerReflectionResponse {
                    valid_host: request.host.clone(),
                    original_request: Some(request),
                    message_response: Some(response),
                })
            }
        }
    )*};
}

serve!(v1, v1alpha);

#[cfg(test)]
mod tests {
    use prost_reflect::prost::Message;
    use prost_reflect::prost_types::FileDescriptorProto;

    use super::*;
    use crate::services::service_names;

    fn file(question: Question) -> Option<String> {
        match question.answer() {
            Finding::File(bytes) => FileDescriptorProto::decode(&*bytes).unwrap().name,
            Finding::Extensions { .. } | Finding::Services | Finding::Nothing { .. } => None,
        }
    }

    #[test]
    fn every_service_that_is_listed_is_described() {
        for name in service_names() {
            let described = file(Question::Symbol(name.clone()));
            assert!(described.is_some(), "{name}");
        }
    }

    #[test]
    fn symbols_of_every_kind_are_found() {
        struct Case {
            symbol: &'static str,
            file: Option<&'static str>,
        }
        let cluster = Some("envoy/config/cluster/v3/cluster.proto");
        let cases = [
            Case {
                symbol: "envoy.config.cluster.v3.Cluster",
                file: cluster,
            },
            Case {
                symbol: "envoy.config.cluster.v3.Cluster.LbPolicy",
                file: cluster,
            },
            Case {
                symbol: "envoy.config.cluster.v3.Cluster.lb_policy",
                file: cluster,
            },
            Case {
                symbol: "envoy.config.cluster.v3.Cluster.nothing",
                file: None,
            },
            Case {
                symbol: "envoy.service.cluster.v3.ClusterDiscoveryService.StreamClusters",
                file: Some("envoy/service/cluster/v3/cds.proto"),
            },
            Case {
                symbol: "validate.rules",
                file: Some("validate/validate.proto"),
            },
            Case {
                symbol: "grpc.health.v1.Health.Check",
                file: Some("health.proto"),
            },
            Case {
                symbol: "nothing.Here",
                file: None,
            },
        ];
        for Case {
            symbol,
            file: wanted,
        } in cases
        {
            assert_eq!(
                file(Question::Symbol(symbol.to_owned())).as_deref(),
                wanted,
                "{symbol}"
            );
        }
    }

    #[test]
    fn rules_of_envoys_protos_are_in_their_files_and_extensions_are_found() {
        let name = "envoy/config/cluster/v3/cluster.proto".to_owned();
        let Finding::File(bytes) = Question::File(name).answer() else {
            panic!("the file is there");
        };
        let mut pool = descriptor_pool().clone();
        assert!(
            pool.decode_file_descriptor_proto(&*bytes).is_ok(),
            "as it was"
        );
        let of = "google.protobuf.FieldOptions".to_owned();
        let Finding::Extensions { numbers, .. } = Question::ExtensionsOf(of.clone()).answer()
        else {
            panic!("there are extensions");
        };
        assert!(numbers.contains(&1071), "validate.rules");
        let rules = file(Question::Extension { of, number: 1071 });
        assert_eq!(rules.as_deref(), Some("validate/validate.proto"));
    }
}
