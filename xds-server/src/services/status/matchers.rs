//! Envoy's `NodeMatcher`s, compiled: which clients a CSDS request asks for.

use isthmus_proto::pb::envoy::config::core::v3::Node;
use isthmus_proto::pb::envoy::r#type::matcher::v3 as pb;
use isthmus_proto::pb::envoy::r#type::matcher::v3::double_matcher::MatchPattern as DoublePattern;
use isthmus_proto::pb::envoy::r#type::matcher::v3::list_matcher::MatchPattern as ListPattern;
use isthmus_proto::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern as StringPattern;
use isthmus_proto::pb::envoy::r#type::matcher::v3::struct_matcher::path_segment::Segment;
use isthmus_proto::pb::envoy::r#type::matcher::v3::value_matcher::MatchPattern as ValuePattern;
use isthmus_proto::pb::google::protobuf::Value;
use isthmus_proto::pb::google::protobuf::value::Kind;
use regex::{Regex, RegexBuilder};

/// Matchers of one request, of either kind: each is looked at for every client.
const MATCHERS: usize = 100;

/// Bytes of a regular expression compiled; a fraction of a millisecond to make, and linear to run.
const REGEX_BYTES: usize = 256 * 1024;

/// Why a request's matchers cannot be used.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("{field}: {problem}")]
pub(super) struct BadMatcher {
    /// From the request's root, such as `node_matchers[0].node_id`.
    field: String,
    problem: Problem,
}

#[derive(Debug, Eq, PartialEq, thiserror::Error)]
enum Problem {
    #[error("is empty; set what it has to match, or leave the matcher out")]
    Empty,
    #[error("is not supported; use exact, prefix, suffix, contains or safe_regex")]
    Custom,
    #[error(
        "is not a regular expression that this server takes (RE2's syntax, {REGEX_BYTES} bytes compiled)"
    )]
    Regex,
    #[error("has {found} matchers, over the limit of {MATCHERS}; ask in several requests")]
    TooMany { found: usize },
}

/// All matchers of a request. Without any, every node matches; else one must.
#[derive(Debug)]
pub(super) struct NodeMatchers(Vec<NodeMatcher>);

// All parts must match.
#[derive(Debug)]
struct NodeMatcher {
    id: Option<Text>,
    metadata: Vec<Field>,
}

#[derive(Debug)]
struct Field {
    path: Vec<String>,
    value: Wanted,
}

#[derive(Debug)]
enum Wanted {
    Null,
    Number { from: f64, below: f64 },
    Exactly(f64),
    Text(Text),
    Bool(bool),
    Present(bool),
    AnyItem(Box<Wanted>),
    AnyOf(Vec<Wanted>),
}

#[derive(Debug)]
struct Text {
    pattern: Pattern,
    ignores_case: bool,
}

// In lower case where case is ignored.
#[derive(Debug)]
enum Pattern {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    Regex(Box<Regex>),
}

impl TryFrom<Vec<pb::NodeMatcher>> for NodeMatchers {
    type Error = BadMatcher;

    fn try_from(matchers: Vec<pb::NodeMatcher>) -> Result<Self, BadMatcher> {
        check_count("node_matchers", matchers.len())?;
        let matchers = matchers.into_iter().enumerate();
        let parsed = matchers.map(|(index, matcher)| {
            let field = format!("node_matchers[{index}]");
            if matcher.node_id.is_none() && matcher.node_metadatas.is_empty() {
                return Err(bad(&field, Problem::Empty));
            }
            let id = matcher
                .node_id
                .map(|id| text(id, &format!("{field}.node_id")));
            let field = format!("{field}.node_metadatas");
            check_count(&field, matcher.node_metadatas.len())?;
            let metadata = matcher.node_metadatas.into_iter().enumerate();
            let metadata =
                metadata.map(|(index, it)| metadata_field(it, &format!("{field}[{index}]")));
            Ok(NodeMatcher {
                id: id.transpose()?,
                metadata: metadata.collect::<Result<_, _>>()?,
            })
        });
        parsed.collect::<Result<_, _>>().map(Self)
    }
}

fn bad(field: &str, problem: Problem) -> BadMatcher {
    BadMatcher {
        field: field.to_owned(),
        problem,
    }
}

fn check_count(field: &str, found: usize) -> Result<(), BadMatcher> {
    if found > MATCHERS {
        return Err(bad(field, Problem::TooMany { found }));
    }
    Ok(())
}

fn metadata_field(matcher: pb::StructMatcher, field: &str) -> Result<Field, BadMatcher> {
    let at = format!("{field}.path");
    if matcher.path.is_empty() {
        return Err(bad(&at, Problem::Empty));
    }
    let path = matcher
        .path
        .into_iter()
        .map(|segment| match segment.segment {
            Some(Segment::Key(key)) if !key.is_empty() => Ok(key),
            Some(Segment::Key(_)) | None => Err(bad(&at, Problem::Empty)),
        });
    Ok(Field {
        path: path.collect::<Result<_, _>>()?,
        value: wanted(matcher.value, &format!("{field}.value"))?,
    })
}

fn wanted(matcher: Option<pb::ValueMatcher>, field: &str) -> Result<Wanted, BadMatcher> {
    let pattern = matcher.and_then(|matcher| matcher.match_pattern);
    Ok(match pattern.ok_or_else(|| bad(field, Problem::Empty))? {
        ValuePattern::NullMatch(_) => Wanted::Null,
        ValuePattern::DoubleMatch(number) => match number.match_pattern {
            Some(DoublePattern::Range(range)) => Wanted::Number {
                from: range.start,
                below: range.end,
            },
            Some(DoublePattern::Exact(number)) => Wanted::Exactly(number),
            None => return Err(bad(&format!("{field}.double_match"), Problem::Empty)),
        },
        ValuePattern::StringMatch(matcher) => {
            Wanted::Text(text(matcher, &format!("{field}.string_match"))?)
        }
        ValuePattern::BoolMatch(value) => Wanted::Bool(value),
        ValuePattern::PresentMatch(is_present) => Wanted::Present(is_present),
        ValuePattern::ListMatch(list) => {
            let item = list.match_pattern.map(|ListPattern::OneOf(item)| *item);
            let field = format!("{field}.list_match.one_of");
            Wanted::AnyItem(Box::new(wanted(item, &field)?))
        }
        ValuePattern::OrMatch(any) => {
            let field = format!("{field}.or_match.value_matchers");
            check_count(&field, any.value_matchers.len())?;
            if any.value_matchers.is_empty() {
                return Err(bad(&field, Problem::Empty));
            }
            let any = any.value_matchers.into_iter().enumerate();
            let any = any.map(|(index, it)| wanted(Some(it), &format!("{field}[{index}]")));
            Wanted::AnyOf(any.collect::<Result<_, _>>()?)
        }
    })
}

fn text(matcher: pb::StringMatcher, field: &str) -> Result<Text, BadMatcher> {
    let ignores_case = matcher.ignore_case;
    let spelled = |text: String| {
        if ignores_case {
            text.to_ascii_lowercase()
        } else {
            text
        }
    };
    let pattern = match matcher.match_pattern {
        Some(StringPattern::Exact(text)) => Pattern::Exact(spelled(text)),
        Some(StringPattern::Prefix(text)) => Pattern::Prefix(spelled(text)),
        Some(StringPattern::Suffix(text)) => Pattern::Suffix(spelled(text)),
        Some(StringPattern::Contains(text)) => Pattern::Contains(spelled(text)),
        Some(StringPattern::SafeRegex(matcher)) => {
            let regex = whole_match(&matcher.regex);
            let problem = || bad(&format!("{field}.safe_regex.regex"), Problem::Regex);
            // RE2 matches with case, whatever ignore_case says.
            return Ok(Text {
                pattern: Pattern::Regex(Box::new(regex.ok_or_else(problem)?)),
                ignores_case: false,
            });
        }
        Some(StringPattern::Custom(_)) => {
            return Err(bad(&format!("{field}.custom"), Problem::Custom));
        }
        None => return Err(bad(field, Problem::Empty)),
    };
    Ok(Text {
        pattern,
        ignores_case,
    })
}

// Alone first, so that the anchors hold the whole of it: `a)|(b` is no expression.
fn whole_match(pattern: &str) -> Option<Regex> {
    let compile = |pattern: &str| {
        let mut builder = RegexBuilder::new(pattern);
        builder.size_limit(REGEX_BYTES).build().ok()
    };
    compile(pattern).and_then(|_| compile(&format!(r"\A(?:{pattern})\z")))
}

impl NodeMatchers {
    /// Whether the request asks for a client with this node.
    pub(super) fn match_node(&self, node: &Node) -> bool {
        self.0.is_empty() || self.0.iter().any(|matcher| matcher.matches(node))
    }
}

impl NodeMatcher {
    fn matches(&self, node: &Node) -> bool {
        self.id.as_ref().is_none_or(|id| id.matches(&node.id))
            && self.metadata.iter().all(|field| field.matches(node))
    }
}

impl Field {
    fn matches(&self, node: &Node) -> bool {
        let mut segments = self.path.iter();
        let first = segments
            .next()
            .and_then(|key| node.metadata.as_ref()?.fields.get(key));
        let found = segments.fold(first, |value, key| match &value?.kind {
            Some(Kind::StructValue(inner)) => inner.fields.get(key),
            _ => None,
        });
        self.value.matches(found)
    }
}

impl Wanted {
    fn matches(&self, value: Option<&Value>) -> bool {
        let kind = value.and_then(|value| value.kind.as_ref());
        match (self, kind) {
            (Self::Present(wanted), _) => *wanted == value.is_some(),
            (Self::AnyOf(any), _) => any.iter().any(|it| it.matches(value)),
            (Self::Null, Some(Kind::NullValue(_))) => true,
            (Self::Number { from, below }, Some(Kind::NumberValue(number))) => {
                number >= from && number < below
            }
            (Self::Exactly(wanted), Some(Kind::NumberValue(number))) => {
                number.total_cmp(wanted).is_eq()
            }
            (Self::Text(text), Some(Kind::StringValue(value))) => text.matches(value),
            (Self::Bool(wanted), Some(Kind::BoolValue(value))) => wanted == value,
            (Self::AnyItem(item), Some(Kind::ListValue(list))) => {
                list.values.iter().any(|value| item.matches(Some(value)))
            }
            _ => false,
        }
    }
}

impl Text {
    fn matches(&self, text: &str) -> bool {
        let lower;
        let text = if self.ignores_case {
            lower = text.to_ascii_lowercase();
            &lower
        } else {
            text
        };
        match &self.pattern {
            Pattern::Exact(wanted) => text == wanted,
            Pattern::Prefix(wanted) => text.starts_with(wanted),
            Pattern::Suffix(wanted) => text.ends_with(wanted),
            Pattern::Contains(wanted) => text.contains(wanted),
            Pattern::Regex(wanted) => wanted.is_match(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost_reflect::{DynamicMessage, prost::Message};
    use serde_json::json;

    use super::*;

    // Matchers as people write them.
    fn parse(matcher: &serde_json::Value) -> Result<NodeMatchers, BadMatcher> {
        let pool = isthmus_proto::descriptor_pool();
        let name = "envoy.service.status.v3.ClientStatusRequest";
        let descriptor = pool.get_message_by_name(name).unwrap();
        let request = json!({ "node_matchers": matcher });
        let message = DynamicMessage::deserialize(descriptor, request).unwrap();
        let bytes = message.encode_to_vec();
        let request =
            isthmus_proto::pb::envoy::service::status::v3::ClientStatusRequest::decode(&*bytes);
        NodeMatchers::try_from(request.unwrap().node_matchers)
    }

    fn node() -> Node {
        let pool = isthmus_proto::descriptor_pool();
        let descriptor = pool
            .get_message_by_name("envoy.config.core.v3.Node")
            .unwrap();
        let node = json!({
            "id": "sidecar~10.0.0.1~cart.shop",
            "metadata": {
                "NAMESPACE": "shop",
                "LABELS": {"app": "cart", "weight": 7, "is_canary": true, "none": null},
                "PORTS": [80, 443],
            },
        });
        let message = DynamicMessage::deserialize(descriptor, node).unwrap();
        Node::decode(&*message.encode_to_vec()).unwrap()
    }

    fn id(matcher: &serde_json::Value) -> serde_json::Value {
        json!([{ "node_id": matcher }])
    }

    fn label(path: &[&str], value: &serde_json::Value) -> serde_json::Value {
        let path: Vec<serde_json::Value> = path.iter().map(|key| json!({ "key": key })).collect();
        json!([{ "node_metadatas": [{ "path": path, "value": value }] }])
    }

    #[test]
    fn r58_nodes_are_matched_by_id_and_metadata() {
        let app: &[&str] = &["LABELS", "app"];
        let weight: &[&str] = &["LABELS", "weight"];
        let cases = [
            (json!([]), true),
            (id(&json!({"exact": "sidecar~10.0.0.1~cart.shop"})), true),
            (id(&json!({"exact": "sidecar"})), false),
            (id(&json!({"prefix": "sidecar~"})), true),
            (id(&json!({"suffix": ".SHOP"})), false),
            (id(&json!({"suffix": ".SHOP", "ignore_case": true})), true),
            (id(&json!({"contains": "cart"})), true),
            (
                id(&json!({"safe_regex": {"regex": r"sidecar~[0-9.]+~cart\..*"}})),
                true,
            ),
            (id(&json!({"safe_regex": {"regex": "cart"}})), false),
            (
                id(&json!({"safe_regex": {"regex": "sidecar.*|router.*"}})),
                true,
            ),
            (
                label(app, &json!({"string_match": {"exact": "cart"}})),
                true,
            ),
            (
                label(&["LABELS"], &json!({"string_match": {"exact": "cart"}})),
                false,
            ),
            (
                label(&["NAMESPACE", "deeper"], &json!({"present_match": true})),
                false,
            ),
            (label(&["missing"], &json!({"present_match": true})), false),
            (label(&["missing"], &json!({"present_match": false})), true),
            (label(weight, &json!({"double_match": {"exact": 7}})), true),
            (
                label(
                    weight,
                    &json!({"double_match": {"range": {"start": 7, "end": 8}}}),
                ),
                true,
            ),
            (
                label(
                    weight,
                    &json!({"double_match": {"range": {"start": 1, "end": 7}}}),
                ),
                false,
            ),
            (
                label(&["LABELS", "is_canary"], &json!({"bool_match": true})),
                true,
            ),
            (label(&["LABELS", "none"], &json!({"null_match": {}})), true),
            (
                label(
                    &["PORTS"],
                    &json!({"list_match": {"one_of": {"double_match": {"exact": 443}}}}),
                ),
                true,
            ),
            (
                label(
                    &["PORTS"],
                    &json!({"list_match": {"one_of": {"double_match": {"exact": 8}}}}),
                ),
                false,
            ),
            (
                label(
                    app,
                    &json!({"or_match": {"value_matchers": [
                    {"string_match": {"exact": "other"}}, {"string_match": {"prefix": "ca"}}]}}),
                ),
                true,
            ),
            // Parts of a matcher are AND-ed, matchers are OR-ed.
            (
                json!([{"node_id": {"prefix": "sidecar"}, "node_metadatas":
                    [{"path": [{"key": "NAMESPACE"}], "value": {"string_match": {"exact": "other"}}}]}]),
                false,
            ),
            (
                json!([{"node_id": {"exact": "x"}}, {"node_id": {"prefix": "sidecar"}}]),
                true,
            ),
        ];
        for (matcher, wanted) in cases {
            let parsed = parse(&matcher).unwrap();
            assert_eq!(parsed.match_node(&node()), wanted, "{matcher}");
        }
    }

    #[test]
    fn r58_what_cannot_be_matched_is_refused_by_field() {
        let custom = json!({"custom": {"name": "x", "typed_config":
            {"@type": "type.googleapis.com/google.protobuf.Empty", "value": {}}}});
        let many = vec![json!({"node_id": {"exact": "x"}}); MATCHERS + 1];
        let cases = [
            (json!([{}]), "node_matchers[0]: is empty"),
            (id(&json!({})), "node_matchers[0].node_id: is empty"),
            (
                id(&custom),
                "node_matchers[0].node_id.custom: is not supported",
            ),
            (
                id(&json!({"safe_regex": {"regex": "a)|(b"}})),
                "node_matchers[0].node_id.safe_regex.regex: is not",
            ),
            (
                id(&json!({"safe_regex": {"regex": "(a{1000}){1000}"}})),
                "node_matchers[0].node_id.safe_regex.regex",
            ),
            (
                label(&[], &json!({"bool_match": true})),
                "node_matchers[0].node_metadatas[0].path: is empty",
            ),
            (
                label(&["a"], &json!({})),
                "node_matchers[0].node_metadatas[0].value: is empty",
            ),
            (
                label(&["a"], &json!({"list_match": {}})),
                "node_matchers[0].node_metadatas[0].value.list_match.one_of: is empty",
            ),
            (
                label(
                    &["a"],
                    &json!({"or_match": {"value_matchers": [{"string_match": custom}]}}),
                ),
                "node_matchers[0].node_metadatas[0].value.or_match.value_matchers[0].string_match.custom: is not",
            ),
            (
                json!(many),
                "node_matchers: has 101 matchers, over the limit of 100",
            ),
        ];
        for (matcher, wanted) in cases {
            let refused = parse(&matcher).unwrap_err().to_string();
            assert!(refused.starts_with(wanted), "{matcher}: {refused}");
        }
    }
}
