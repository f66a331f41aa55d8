//! Why a call is refused, as its caller is told.

use bytes::Bytes;
use isthmus_proto::pb::google::{protobuf, rpc};
use isthmus_xds_core::CommitError;
use prost::Message;
use tonic::{Code, Status};

use super::limits::{MAX_ERROR_BYTES, MAX_MISTAKES};
use crate::resources::Mistake;

/// Why a change is refused. Nothing of it is in force.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// The request is wrong in itself, or beside what is in force.
    Invalid(Vec<Mistake>),
    /// It cannot follow what is in force.
    Commit(CommitError),
}

impl From<CommitError> for Refusal {
    fn from(error: CommitError) -> Self {
        Self::Commit(error)
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Invalid(mistakes) => invalid(&mistakes),
            Refusal::Commit(error) => {
                let code = match error {
                    CommitError::Generation { .. } => Code::Aborted,
                    CommitError::DocumentTaken { .. } | CommitError::DuplicateResource { .. } => {
                        Code::AlreadyExists
                    }
                    CommitError::AmbiguousName { .. } => Code::InvalidArgument,
                    CommitError::UnknownDocument { .. } => Code::NotFound,
                };
                Status::new(code, error.to_string())
            }
        }
    }
}

fn invalid(mistakes: &[Mistake]) -> Status {
    let mut text = String::new();
    let mut said = 0;
    for mistake in mistakes.iter().take(MAX_MISTAKES) {
        let line = mistake.to_string();
        if said > 0 && text.len() + line.len() > MAX_ERROR_BYTES {
            break;
        }
        if said > 0 {
            text.push('\n');
        }
        text.push_str(&line);
        said += 1;
    }
    text.truncate(text.floor_char_boundary(MAX_ERROR_BYTES));
    if said < mistakes.len() {
        text = format!("{text}\nand {} more", mistakes.len() - said);
    }
    let details = details(&text, mistakes);
    Status::with_details(Code::InvalidArgument, text, details)
}

// `google.rpc.Status` with a `google.rpc.BadRequest`, which libraries of many languages unpack.
fn details(text: &str, mistakes: &[Mistake]) -> Bytes {
    let mut bad_request = BadRequest::default();
    for mistake in mistakes {
        bad_request.field_violations.push(FieldViolation {
            field: mistake.path.clone(),
            description: mistake.problem.clone(),
        });
        if bad_request.encoded_len() > MAX_ERROR_BYTES {
            bad_request.field_violations.pop();
            break;
        }
    }
    let any = protobuf::Any {
        type_url: "type.googleapis.com/google.rpc.BadRequest".to_owned(),
        value: bad_request.encode_to_vec(),
    };
    // The text is said once: both are headers.
    let first = text.lines().next().unwrap_or_default();
    let status = rpc::Status {
        code: Code::InvalidArgument as i32,
        message: first.to_owned(),
        details: vec![any],
    };
    status.encode_to_vec().into()
}

/// `google.rpc.BadRequest`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
pub struct BadRequest {
    /// One for each mistake.
    #[prost(message, repeated, tag = "1")]
    pub field_violations: Vec<FieldViolation>,
}

/// One mistake in a request.
#[derive(Clone, PartialEq, Message)]
pub struct FieldViolation {
    /// Path to the field.
    #[prost(string, tag = "1")]
    pub field: String,
    /// What is wrong with it.
    #[prost(string, tag = "2")]
    pub description: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_mistakes_fits_a_header() {
        let mistake = |index: usize| Mistake::new(&format!("a[{index}]"), "ä".repeat(100));
        let status = Status::from(Refusal::Invalid((0..5000).map(mistake).collect()));
        assert!(status.message().len() < MAX_ERROR_BYTES + 50);
        assert!(status.details().len() < 2 * MAX_ERROR_BYTES);
        assert!(status.message().ends_with(" more"), "{}", status.message());
        let one = Status::from(Refusal::Invalid(vec![Mistake::new("a", "ä".repeat(5000))]));
        assert!(one.message().len() <= MAX_ERROR_BYTES);
    }

    #[test]
    fn details_name_the_fields() {
        let mistakes = vec![Mistake::new(
            "document.name",
            "must not be empty".to_owned(),
        )];
        let status = Status::from(Refusal::Invalid(mistakes));
        assert_eq!(status.message(), "document.name: must not be empty");
        let inner = rpc::Status::decode(status.details()).unwrap();
        let bad_request = BadRequest::decode(&*inner.details[0].value).unwrap();
        assert_eq!(bad_request.field_violations[0].field, "document.name");
    }
}
