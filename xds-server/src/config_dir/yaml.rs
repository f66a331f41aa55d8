//! YAML text to trees of [`Node`]s that know their line.
//!
//! The tree is built here, from parser events, and not by a serde data format: every value keeps its line,
//! error texts never repeat a value (which may be a private key), a file may break in one document and
//! still have the ones before it checked, and alias bombs are counted where they expand. JSON is read as
//! the YAML it is.
//!
//! Plain scalars have the types of YAML 1.2's core schema: `yes` and `on` are strings. Mapping keys are
//! always strings; the merge key `<<` is one like any other, as in Envoy's own files. Duplicate keys are kept: whoever gives the mapping a meaning knows its path.

use std::collections::HashMap;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span, Tag};

use super::limits::{MAX_ALIASED_VALUES, MAX_DEPTH};

/// A value and where it starts.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) content: Content,
    /// 1-based.
    pub(super) line: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    Bool(bool),
    Mapping(Vec<Entry>),
    Null,
    /// A plain scalar that reads as a number, as it is written: only the field knows its range.
    Number(Box<str>),
    Sequence(Vec<Node>),
    Text(Box<str>),
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: Box<str>,
    /// Line of the key, 1-based.
    pub(super) line: usize,
    pub(super) value: Node,
}

/// Why a file is not YAML that this program takes; what follows in the file is not read.
#[derive(Debug)]
pub(super) struct SyntaxError {
    /// 1-based; the document it is in.
    pub(super) document: usize,
    /// 1-based.
    pub(super) line: usize,
    /// 1-based.
    pub(super) column: usize,
    pub(super) reason: SyntaxReason,
}

#[derive(Debug)]
pub(super) enum SyntaxReason {
    AliasBudget,
    AliasLoop,
    ComplexKey,
    CustomTag,
    Depth,
    Scan(String),
}

/// A document that is not empty.
#[derive(Debug)]
pub(super) struct Document {
    /// 1-based; empty documents count.
    pub(super) number: usize,
    pub(super) root: Node,
}

impl Node {
    /// Names the type for an error: "expected a string, found ...".
    pub(super) fn type_name(&self) -> &'static str {
        match self.content {
            Content::Bool(_) => "a boolean",
            Content::Mapping(_) => "a mapping",
            Content::Null => "null",
            Content::Number(_) => "a number",
            Content::Sequence(_) => "a list",
            Content::Text(_) => "a string",
        }
    }

    pub(super) fn entries(&self) -> Option<&[Entry]> {
        if let Content::Mapping(entries) = &self.content {
            Some(entries)
        } else {
            None
        }
    }

    pub(super) fn entries_mut(&mut self) -> Option<&mut Vec<Entry>> {
        if let Content::Mapping(entries) = &mut self.content {
            Some(entries)
        } else {
            None
        }
    }

    pub(super) fn number(&self) -> Option<&str> {
        if let Content::Number(text) = &self.content {
            Some(text)
        } else {
            None
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        if let Content::Text(text) = &self.content {
            Some(text)
        } else {
            None
        }
    }

    /// The value of `key`, the first if it is given twice.
    pub(super) fn lookup(&self, key: &str) -> Option<&Node> {
        self.entries()?
            .iter()
            .find(|entry| &*entry.key == key)
            .map(|entry| &entry.value)
    }

    /// How many values the tree has, and on how many levels.
    fn measure(&self) -> Measure {
        let children: &mut dyn Iterator<Item = &Self> = match &self.content {
            Content::Mapping(entries) => &mut entries.iter().map(|entry| &entry.value),
            Content::Sequence(items) => &mut items.iter(),
            Content::Bool(_) | Content::Null | Content::Number(_) | Content::Text(_) => {
                &mut std::iter::empty()
            }
        };
        children.map(Self::measure).fold(
            Measure {
                values: 1,
                levels: 1,
            },
            |all, child| Measure {
                values: all.values + child.values,
                levels: all.levels.max(child.levels + 1),
            },
        )
    }
}

#[derive(Clone, Copy, Debug)]
struct Measure {
    levels: usize,
    values: usize,
}

/// Reads all documents of a file: those before the first mistake, and that mistake.
pub(super) fn parse_documents(text: &str) -> (Vec<Document>, Option<SyntaxError>) {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let taken = match event {
            Ok((event, span)) => builder.handle(event, span),
            Err(error) => Err(builder.scan_error(&error)),
        };
        if let Err(error) = taken {
            return (builder.documents, Some(error));
        }
    }
    (builder.documents, None)
}

/// A collection whose end has not been seen.
#[derive(Debug)]
struct Open {
    anchor: usize,
    content: Content,
    line: usize,
    /// In a mapping: the key that waits for its value.
    key: Option<(Box<str>, usize)>,
}

#[derive(Debug, Default)]
struct Builder {
    /// Values of anchored nodes, each kept beside the tree, and of what aliases were replaced with.
    copied_values: usize,
    anchors: HashMap<usize, Anchored>,
    document: usize,
    documents: Vec<Document>,
    open: Vec<Open>,
    root: Option<Node>,
}

#[derive(Debug)]
struct Anchored {
    measure: Measure,
    node: Node,
}

impl Builder {
    fn handle(&mut self, event: Event<'_>, span: Span) -> Result<(), SyntaxError> {
        if let Event::DocumentStart(..) = event {
            self.document += 1;
            self.anchors.clear();
        } else if let Event::DocumentEnd = event {
            self.end_document();
        } else if let Event::Scalar(text, style, anchor, tag) = event {
            let content = resolve_scalar(text.into_owned(), style, tag.as_deref())
                .ok_or_else(|| self.error(span, SyntaxReason::CustomTag))?;
            self.place(
                Node {
                    content,
                    line: span.start.line(),
                },
                anchor,
                span,
            )?;
        } else if let Event::SequenceStart(_, anchor, tag) = event {
            self.open(Content::Sequence(Vec::new()), anchor, tag.as_deref(), span)?;
        } else if let Event::MappingStart(_, anchor, tag) = event {
            self.open(Content::Mapping(Vec::new()), anchor, tag.as_deref(), span)?;
        } else if let Event::SequenceEnd | Event::MappingEnd = event {
            if let Some(Open {
                anchor,
                content,
                line,
                ..
            }) = self.open.pop()
            {
                self.place(Node { content, line }, anchor, span)?;
            }
        } else if let Event::Alias(id) = event {
            self.expand(id, span)?;
        }
        Ok(())
    }

    fn end_document(&mut self) {
        if let Some(root) = self.root.take()
            && !matches!(root.content, Content::Null)
        {
            self.documents.push(Document {
                number: self.document,
                root,
            });
        }
    }

    fn open(
        &mut self,
        content: Content,
        anchor: usize,
        tag: Option<&Tag>,
        span: Span,
    ) -> Result<(), SyntaxError> {
        if tag.is_some_and(|tag| !tag.is_yaml_core_schema()) {
            return Err(self.error(span, SyntaxReason::CustomTag));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(self.error(span, SyntaxReason::Depth));
        }
        self.open.push(Open {
            anchor,
            content,
            line: span.start.line(),
            key: None,
        });
        Ok(())
    }

    fn expand(&mut self, id: usize, span: Span) -> Result<(), SyntaxError> {
        // The parser knows the name, so the collection that has it is still open: a tree without end.
        let Some(Anchored { measure, node }) = self.anchors.get(&id) else {
            return Err(self.error(span, SyntaxReason::AliasLoop));
        };
        if self.open.len() + measure.levels > MAX_DEPTH {
            return Err(self.error(span, SyntaxReason::Depth));
        }
        let (values, node) = (measure.values, node.clone());
        self.count_copied(values, span)?;
        self.place(node, 0, span)
    }

    fn count_copied(&mut self, values: usize, span: Span) -> Result<(), SyntaxError> {
        self.copied_values += values;
        if self.copied_values > MAX_ALIASED_VALUES {
            return Err(self.error(span, SyntaxReason::AliasBudget));
        }
        Ok(())
    }

    fn place(&mut self, node: Node, anchor: usize, span: Span) -> Result<(), SyntaxError> {
        if anchor != 0 {
            let measure = node.measure();
            self.count_copied(measure.values, span)?;
            self.anchors.insert(
                anchor,
                Anchored {
                    measure,
                    node: node.clone(),
                },
            );
        }
        let error = self.error(span, SyntaxReason::ComplexKey);
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut parent.content {
            Content::Sequence(items) => items.push(node),
            Content::Mapping(entries) => match parent.key.take() {
                Some((key, line)) => entries.push(Entry {
                    key,
                    line,
                    value: node,
                }),
                None => parent.key = Some((key_of(node.content).ok_or(error)?, node.line)),
            },
            Content::Bool(_) | Content::Null | Content::Number(_) | Content::Text(_) => {
                unreachable!("only collections are opened")
            }
        }
        Ok(())
    }

    fn error(&self, span: Span, reason: SyntaxReason) -> SyntaxError {
        let Span { start, .. } = span;
        SyntaxError {
            document: self.document,
            line: start.line(),
            column: start.col() + 1,
            reason,
        }
    }

    fn scan_error(&self, error: &ScanError) -> SyntaxError {
        let reason = if *error.kind() == ErrorKind::RecursionLimitExceeded {
            SyntaxReason::Depth
        } else {
            SyntaxReason::Scan(error.info())
        };
        SyntaxError {
            document: self.document.max(1),
            line: error.marker().line(),
            column: error.marker().col() + 1,
            reason,
        }
    }
}

/// A key is a string whatever it looks like: `80: x` is the key "80".
fn key_of(content: Content) -> Option<Box<str>> {
    match content {
        Content::Bool(value) => Some(value.to_string().into()),
        Content::Number(text) | Content::Text(text) => Some(text),
        Content::Null | Content::Mapping(_) | Content::Sequence(_) => None,
    }
}

fn resolve_scalar(text: String, style: ScalarStyle, tag: Option<&Tag>) -> Option<Content> {
    let text = text.into_boxed_str();
    match tag.map(|tag| (tag.is_yaml_core_schema(), tag.suffix())) {
        Some((true, "str" | "binary")) => return Some(Content::Text(text)),
        Some((false, _)) => return None,
        Some((true, _)) | None => {}
    }
    if style != ScalarStyle::Plain {
        return Some(Content::Text(text));
    }
    Some(match &*text {
        "" | "~" | "null" | "Null" | "NULL" => Content::Null,
        "true" | "True" | "TRUE" => Content::Bool(true),
        "false" | "False" | "FALSE" => Content::Bool(false),
        number if is_number(number) => Content::Number(text),
        _ => Content::Text(text),
    })
}

/// The number forms of YAML 1.2's core schema.
fn is_number(text: &str) -> bool {
    let digits =
        |text: &str, radix| !text.is_empty() && text.chars().all(|char| char.is_digit(radix));
    if let Some(octal) = text.strip_prefix("0o") {
        return digits(octal, 8);
    }
    if let Some(hexadecimal) = text.strip_prefix("0x") {
        return digits(hexadecimal, 16);
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let exponent_is_fine =
        exponent.is_none_or(|text| digits(text.strip_prefix(['-', '+']).unwrap_or(text), 10));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    exponent_is_fine
        && all_digits(whole)
        && all_digits(fraction)
        && (whole.len() + fraction.len()) > 0
}
