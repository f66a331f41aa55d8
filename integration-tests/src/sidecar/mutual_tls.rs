//! Mutual TLS between sidecars, as with Istio's mode STRICT.

use serde_json::{Value, json};

use super::type_url;

/// Who a workload is, as a server and as a client. All but its name is PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The CA that vouches for it, and for whom it believes.
    pub authority: String,
    /// Its certificate, which has the name.
    pub certificate: String,
    /// Key of the certificate.
    pub key: String,
    /// Its name, such as `spiffe://cluster.local/ns/default/sa/client`.
    pub uri: String,
}

impl Identity {
    /// Transport socket of a filter chain that takes nobody without a certificate.
    pub(super) fn downstream(&self) -> Value {
        let context = json!({
            "@type": type_url("envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
            "commonTlsContext": self.common_context(),
            "requireClientCertificate": true,
        });
        transport_socket(&context)
    }

    /// Transport socket of a cluster whose endpoints are this workload too.
    pub(super) fn upstream(&self) -> Value {
        let mut common = self.common_context();
        common["validationContext"]["matchTypedSubjectAltNames"] =
            json!([{"sanType": "URI", "matcher": {"exact": self.uri}}]);
        let context = json!({
            "@type": type_url("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
            "commonTlsContext": common,
        });
        transport_socket(&context)
    }

    fn common_context(&self) -> Value {
        json!({
            "tlsCertificates": [{
                "certificateChain": {"inlineString": self.certificate},
                "privateKey": {"inlineString": self.key},
            }],
            "validationContext": {"trustedCa": {"inlineString": self.authority}},
        })
    }
}

fn transport_socket(context: &Value) -> Value {
    json!({"name": "envoy.transport_sockets.tls", "typedConfig": context})
}
