//! `threshold` of a pipeline: a number, or a budget of false alarms from which the device learns one.

use super::raw::{Node, Table, Value};
use crate::limits;

/// The number, or the false alarms a week.
pub(super) fn threshold(t: &mut Table<'_>) -> (Option<f32>, Option<f64>) {
    match t.node("threshold") {
        Some(node @ Node { value: Value::Table(_), .. }) => (None, budget(t.sub("threshold".into(), node))),
        Some(Node { value: Value::Str(text), .. }) => {
            let why = format!("must be a number, or `{{ false_alarms_per_week = 1 }}`, not the text `{text}`");
            t.problem("threshold", why);
            (None, None)
        }
        _ => (t.float("threshold").map(|x| x as f32), None),
    }
}

fn budget(mut t: Table<'_>) -> Option<f64> {
    let given = t.has("false_alarms_per_week");
    let budget = t.float("false_alarms_per_week");
    let (least, most) = limits::FALSE_ALARMS_PER_WEEK;
    match budget {
        None if !given => t.problem("false_alarms_per_week", "is needed: how many false alarms a week are allowed"),
        Some(n) if !(least..=most).contains(&n) => {
            t.problem("false_alarms_per_week", format!("{n} is not within {least} to {most}"));
        }
        _ => {}
    }
    t.finish();
    budget
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn read(threshold: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().expect("folder");
        std::fs::write(dir.path().join("m.onnx"), "no model, and it is never opened").expect("model");
        let file = dir.path().join("kentledge.toml");
        let text = format!(
            "[device]\nsite = \"s\"\nid = \"d\"\nstate_dir = \"{}\"\n[models]\nallow_unsigned = true\n\
             [source.s]\npath = \"/dev/null\"\ncolumns = [\"a\"]\n[channel.a]\n[pipeline.x]\nmodel = \"m.onnx\"\n\
             channels = [\"a\"]\nwindow_steps = 4\n{threshold}\n[alarm.high]\npipeline = \"x\"\n",
            dir.path().display()
        );
        std::fs::write(&file, text).expect("configuration");
        Config::local(Some(&file)).map_err(|all| all.iter().map(|problem| format!("{problem}\n")).collect())
    }

    #[test]
    fn threshold_is_a_number_or_a_budget_and_an_alarm_is_content_with_either() {
        let of = |text: &str| {
            let pipeline = read(text).expect("valid").pipelines[0].clone();
            (pipeline.threshold, pipeline.budget)
        };
        assert_eq!(of("threshold = 2"), (Some(2.0), None));
        assert_eq!(of("threshold = { false_alarms_per_week = 0.5 }"), (None, Some(0.5)));
        assert!(read("").expect_err("no threshold").contains("raise_above: is needed"));
    }

    #[test]
    fn wrong_budgets_are_named_with_their_key() {
        for (text, expected) in [
            ("threshold = {}", "threshold.false_alarms_per_week: is needed"),
            ("threshold = { false_alarms_per_week = 0 }", "threshold.false_alarms_per_week: 0 is not within"),
            ("threshold = { false_alarms_per_week = \"1\" }", "threshold.false_alarms_per_week: must be a number"),
            ("threshold = { false_alarms_a_week = 1 }", "did you mean `false_alarms_per_week`?"),
            ("threshold = \"1\"", "threshold: must be a number"),
        ] {
            let problems = read(text).expect_err("wrong");
            assert!(problems.contains(expected), "{text}: {problems}");
        }
    }
}
