//! Names of the form `xdstp://authority/type/id?context` (cncf/xds TP1): one spelling each, and
//! the globs that stand for all resources of a folder (R55).

use std::borrow::Cow;

use crate::resource::Name;

const SCHEME: &str = "xdstp://";

/// Spells a name so that equal names are equal texts: context parameters have no order.
pub fn canonical(name: &Name) -> Cow<'_, Name> {
    let Some((path, context)) = split(name) else {
        return Cow::Borrowed(name);
    };
    let mut parameters: Vec<&str> = context.split('&').filter(|it| !it.is_empty()).collect();
    if parameters.is_sorted() && !context.is_empty() {
        return Cow::Borrowed(name);
    }
    parameters.sort_unstable();
    if parameters.is_empty() {
        return Cow::Owned(Name::from(path));
    }
    Cow::Owned(Name::from(format!("{path}?{}", parameters.join("&"))))
}

/// The glob that stands for a resource: its folder, and the same context. `None` if the name is
/// of another form, as most are.
pub fn glob_of(name: &str) -> Option<String> {
    let rest = name.strip_prefix(SCHEME)?;
    let path = rest.split('?').next().unwrap_or(rest);
    let folder = path.rfind('/')?;
    let (context_start, last) = (SCHEME.len() + path.len(), &path[folder + 1..]);
    if last == "*" || last.is_empty() {
        return None;
    }
    Some(format!(
        "{SCHEME}{}/*{}",
        &path[..folder],
        &name[context_start..]
    ))
}

/// For a glob, what the names of its resources begin with.
pub fn folder_of(glob: &str) -> Option<&str> {
    let path = glob.split('?').next().unwrap_or(glob);
    let folder = path.strip_suffix('*')?;
    (glob.starts_with(SCHEME) && folder.ends_with('/')).then_some(folder)
}

fn split(name: &str) -> Option<(&str, &str)> {
    name.starts_with(SCHEME)
        .then(|| name.split_once('?'))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r55_context_parameters_have_no_order() {
        let cases = [
            ("xdstp://a/t/x?b=2&a=1", "xdstp://a/t/x?a=1&b=2"),
            ("xdstp://a/t/x?a=1&b=2", "xdstp://a/t/x?a=1&b=2"),
            ("xdstp://a/t/x?", "xdstp://a/t/x"),
            ("xdstp://a/t/x", "xdstp://a/t/x"),
            ("plain?b=2&a=1", "plain?b=2&a=1"),
        ];
        for (name, expected) in cases {
            assert_eq!(&**canonical(&Name::from(name)), expected, "{name}");
        }
    }

    #[test]
    fn r55_a_glob_stands_for_one_folder_and_context() {
        let cases = [
            ("xdstp://a/t/f/x", Some("xdstp://a/t/f/*")),
            ("xdstp://a/t/f/x?k=v", Some("xdstp://a/t/f/*?k=v")),
            ("xdstp://a/t/f/*", None),
            ("f/x", None),
        ];
        for (name, expected) in cases {
            assert_eq!(glob_of(name).as_deref(), expected, "{name}");
        }
        assert_eq!(folder_of("xdstp://a/t/f/*?k=v"), Some("xdstp://a/t/f/"));
        assert_eq!(folder_of("xdstp://a/t/f/x"), None);
        assert_eq!(folder_of("*"), None);
    }
}
