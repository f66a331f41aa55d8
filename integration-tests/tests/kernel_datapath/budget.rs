//! What the verifier has to do for each program stays within a budget, which is kept beside the object.

use std::{collections::BTreeMap, io::Write as _};

use isthmus_accel_datapath::linux::{KernelVersion, ProgramCost, program_costs};

/// One line a program and kernel: `isthmus_connect4 6.1 2300 400`.
const BUDGET: &str = include_str!("../../../accelerator/datapath/bpf/budget.txt");
const REMEDY: &str = "make the program cheaper, or raise the budget on purpose: `cargo xtask kernels --update-budget`";

/// Instructions and bytes of stack.
type Limits = (u32, u32);

/// The limits for the running kernel's line; for a line that is not in the file, the largest of all lines.
fn limits(line: &str) -> BTreeMap<&'static str, Limits> {
    let rows: Vec<(&str, &str, Limits)> = BUDGET.lines().filter_map(parse).collect();
    let is_known = rows.iter().any(|(_, kernel, _)| *kernel == line);
    let mut limits = BTreeMap::new();
    for (program, kernel, (instructions, stack)) in rows {
        if !is_known || kernel == line {
            let limit: &mut Limits = limits.entry(program).or_default();
            *limit = (limit.0.max(instructions), limit.1.max(stack));
        }
    }
    limits
}

fn parse(line: &'static str) -> Option<(&'static str, &'static str, Limits)> {
    let mut words = line.split('#').next()?.split_whitespace();
    let (program, kernel) = (words.next()?, words.next()?);
    let mut number = || words.next()?.parse().ok();
    Some((program, kernel, (number()?, number()?)))
}

#[test]
fn each_program_stays_within_its_budget() {
    let version = KernelVersion::running()
        .expect("its words are understood")
        .to_string();
    let (line, _) = version.rsplit_once('.').expect("it has a patch level");
    let limits = limits(line);
    let costs = program_costs().expect("the kernel accepts every program");
    show(&costs);

    let breach = |cost: &ProgramCost| {
        let (program, instructions, stack) = (cost.program, cost.instructions, cost.stack_bytes);
        let Some((max_instructions, max_stack)) = limits.get(program) else {
            return Some(format!("{program} has no budget"));
        };
        (instructions > *max_instructions || stack > *max_stack).then(|| {
            format!(
                "{program}: {instructions} instructions (budget {max_instructions}), {stack} bytes of stack (budget {max_stack})"
            )
        })
    };
    let breaches: Vec<String> = costs.iter().filter_map(breach).collect();
    assert!(
        breaches.is_empty(),
        "on Linux {version}: {}; {REMEDY}",
        breaches.join("; ")
    );
}

/// Not by `println!`, which libtest keeps to itself: `cargo xtask kernels` reads it from the guest's console.
fn show(costs: &[ProgramCost]) {
    let line = |cost: &ProgramCost| {
        let (program, instructions, stack) = (cost.program, cost.instructions, cost.stack_bytes);
        format!("\nverifier: {program} {instructions} {stack}")
    };
    let text: String = costs.iter().map(line).chain(["\n".to_owned()]).collect();
    std::io::stdout()
        .write_all(text.as_bytes())
        .expect("somebody reads it");
}
