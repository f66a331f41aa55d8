//! Secrets out of a client's words: Envoy repeats configuration in some of its errors, as proto text or
//! as JSON, and either may be escaped inside a string of the other.

use std::ops::Range;

use super::REDACTED;

/// What the names of fields with secrets end in, without their underscores and in lower case: those of
/// Envoy's own protos, and those that other people's extensions are likely to have.
const SECRET_NAMES: [&str; 11] = [
    "apikey",
    "authorization",
    "credential",
    "credentials",
    "inlinebytes",
    "inlinestring",
    "passphrase",
    "password",
    "privatekey",
    "secret",
    "token",
];

/// Takes out of a client's words what may be a secret: PEM blocks, and the strings of fields that hold
/// secrets by their names. Costs the length of the words.
#[must_use]
pub fn without_secrets(message: &str) -> String {
    without_pem(&without_fields(message))
}

fn without_fields(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let (mut copied, mut from) = (0, 0);
    while let Some(found) = text[from..].find(':') {
        let colon = from + found;
        from = colon + 1;
        if is_secret_name(name_before(&text[copied..colon]))
            && let Some(secret) = string_after(text, from)
        {
            kept.push_str(&text[copied..secret.start]);
            kept.push_str(REDACTED);
            (copied, from) = (secret.end, secret.end);
        }
    }
    kept.push_str(&text[copied..]);
    kept
}

// The field's name in `name`, `"name"` and `\"name\"`.
fn name_before(text: &str) -> &str {
    let text = text.trim_end().trim_end_matches(['"', '\'', '\\']);
    let is_of_name = |it: char| it.is_ascii_alphanumeric() || it == '_' || it == '-';
    let start = text.trim_end_matches(is_of_name).len();
    &text[start..]
}

fn is_secret_name(name: &str) -> bool {
    let letters = name.chars().filter(|it| !matches!(it, '_' | '-'));
    let bare: String = letters.map(|it| it.to_ascii_lowercase()).collect();
    SECRET_NAMES.iter().any(|ending| bare.ends_with(ending))
}

// What is between the quotes of the string that begins at `from`, if one does; to the end of the text
// if that was cut.
fn string_after(text: &str, from: usize) -> Option<Range<usize>> {
    let value = text[from..].trim_start();
    let quoted = value.trim_start_matches('\\');
    let quote = quoted
        .chars()
        .next()
        .filter(|it| matches!(it, '"' | '\''))?;
    let start = text.len() - quoted.len() + 1;
    let length = string_len(&text[start..], quote, value.len() - quoted.len());
    Some(start..start + length)
}

// The length of a string whose quotes have so many backslashes. Each level of nesting doubles the
// backslashes and adds one to a quote, so that in a run of them before a quote that ends the string
// there are as many as before the first, and pairs of what one backslash became.
fn string_len(text: &str, quote: char, backslashes: usize) -> usize {
    let pair = 2 * (backslashes + 1);
    let mut run = 0;
    for (at, it) in text.char_indices() {
        if it == '\\' {
            run += 1;
        } else if it == quote && run % pair == backslashes {
            return at - backslashes;
        } else {
            run = 0;
        }
    }
    text.len()
}

// A block that was cut goes to the end of the text, as does one that is on one line.
fn without_pem(text: &str) -> String {
    const BEGIN: &str = "-----BEGIN ";
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        let (before, secret) = rest.split_at(at + BEGIN.len());
        kept.push_str(before);
        kept.push_str(REDACTED);
        rest = secret.find("-----END ").map_or("", |end| {
            let last_line = &secret[end..];
            &last_line[last_line.find('\n').unwrap_or(last_line.len())..]
        });
    }
    kept.push_str(rest);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_no_secret() {
        let cases = [
            ("nothing to hide", "nothing to hide"),
            (
                "a {private_key { inline_string: \"SE\\\"CRET\" } x: 1}",
                "a {private_key { inline_string: \"[redacted]\" } x: 1}",
            ),
            (
                "key -----BEGIN RSA-----\nSECRET\n-----END RSA-----\nis bad",
                "key -----BEGIN [redacted]\nis bad",
            ),
            (
                "cut -----BEGIN KEY-----\\nSECR",
                "cut -----BEGIN [redacted]",
            ),
            ("cut inline_bytes: \"SECR", "cut inline_bytes: \"[redacted]"),
        ];
        for (message, expected) in cases {
            assert_eq!(without_secrets(message), expected, "{message}");
        }
    }

    #[test]
    fn however_a_secret_is_written_it_is_found() {
        let cases = [
            (
                r#"{"inline_string":"S","name":"n"}"#,
                r#"{"inline_string":"[redacted]","name":"n"}"#,
            ),
            (
                r#"{"inlineBytes" : "S", "x": 1}"#,
                r#"{"inlineBytes" : "[redacted]", "x": 1}"#,
            ),
            (
                r#"bad "{\"inlineString\": \"S\\\"S\\\\\", \"name\": \"n\"}" at 1"#,
                r#"bad "{\"inlineString\": \"[redacted]\", \"name\": \"n\"}" at 1"#,
            ),
            (
                r#""\"{\\\"inline_string\\\":\\\"S\\\\\\\"S\\\"}\"" after"#,
                r#""\"{\\\"inline_string\\\":\\\"[redacted]\\\"}\"" after"#,
            ),
            (
                r#"password: "S" access_token:'S' "private_key":"S""#,
                r#"password: "[redacted]" access_token:'[redacted]' "private_key":"[redacted]""#,
            ),
            (
                r#"{"clientSecret":"S","api-key":"S:\"token\":\"S"}"#,
                r#"{"clientSecret":"[redacted]","api-key":"[redacted]"}"#,
            ),
            (
                "private_key:\n  inline_string: \"S\" token: none",
                "private_key:\n  inline_string: \"[redacted]\" token: none",
            ),
        ];
        for (message, expected) in cases {
            assert_eq!(without_secrets(message), expected, "{message}");
        }
    }

    #[test]
    fn whom_a_client_blames_stays() {
        let message = "Error adding/updating cluster(s) api-token: no such host: \"x\", b: bad";
        assert_eq!(without_secrets(message), message);
    }
}
