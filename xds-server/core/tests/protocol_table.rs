//! `xds-server/PROTOCOL.md` must not rot: its tests exist and no number is missing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn the_table_names_tests_that_exist_and_every_number() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let table =
        fs::read_to_string(root.join("xds-server/PROTOCOL.md")).expect("the table is there");
    let mut numbers = BTreeSet::new();
    let mut tests = 0;
    for line in table.lines().filter(|line| line.starts_with("| ")) {
        let mut cells = line.split('|').map(str::trim).skip(1);
        numbers.insert(cells.next().unwrap_or_default());
        assert!(
            !line.contains("| ? |"),
            "it is not said where this is held: {line}"
        );
        for test in line.split('`').filter(|it| it.contains(".rs::")) {
            let (file, name) = test.split_once("::").expect("there is a name");
            let source = fs::read_to_string(root.join(file)).unwrap_or_default();
            assert!(
                source.contains(&format!("fn {name}(")),
                "no such test: {test}"
            );
            tests += 1;
        }
    }
    let rules = (1..=66).map(|number| format!("R{number}"));
    let nasty = (1..=24).map(|number| format!("n{number:02}"));
    for number in rules.chain(nasty) {
        assert!(numbers.contains(&*number), "{number} is missing");
    }
    assert!(tests > 100, "{tests}: the table is read as it is written");
}
