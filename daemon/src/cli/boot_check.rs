//! `kentledge boot-check`: checks whether the system that just started is healthy, before the boot loader marks its slot good. A process of
//! its own, for the daemon itself is what may not be well.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    bus::Asked,
    error::{Code, Fatal},
    limits,
};

/// What is known so far.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// All is as it should be.
    Well,
    /// Not yet: this is missing.
    Lacks(String),
    /// All but the broker, which must be reached within so many seconds of the start.
    NoUplink(u64),
}

/// Asks over this bus until the system is healthy or the deadline has passed.
pub async fn check(bus: Option<&str>) -> Result<(), Fatal> {
    let began = Instant::now();
    let mut said = String::new();
    loop {
        let found = match Asked::connect(bus).await {
            Ok(asked) => asked.status().await.map_or_else(|why| Found::Lacks(why.into()), |status| judge(&status)),
            Err(why) => Found::Lacks(why.into()),
        };
        let (why, most, code) = match found {
            Found::Well => {
                tracing::info!("this system is healthy");
                return Ok(());
            }
            Found::Lacks(why) => (why, limits::BOOT_CHECK, Code::Failed),
            // Another start of the same system would wait as long again: the exit code tells the two apart.
            Found::NoUplink(s) => ("the broker was not reached".to_owned(), Duration::from_secs(s), Code::NoUplink),
        };
        if why != said {
            tracing::info!("not yet: {why}");
            said.clone_from(&why);
        }
        if began.elapsed() > most {
            let text = format!("not within {} s: {why}", most.as_secs());
            return Err(Fatal { code, text });
        }
        tokio::time::sleep(limits::BUS_TURN / 4).await;
    }
}

fn judge(status: &Value) -> Found {
    if let Some(why) = status["unwell"].as_array().and_then(|all| all.first()).and_then(Value::as_str) {
        return Found::Lacks(why.to_owned());
    }
    let system = &status["system"];
    if system.is_null() {
        return Found::Lacks("the daemon has not looked at its system yet".into());
    }
    if system["uplink_needed"] == true && status["link"]["acknowledge"]["n"] == 0 {
        return Found::NoUplink(system["confirm_s"].as_u64().unwrap_or(limits::OS_CONFIRM_S));
    }
    Found::Well
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_system_is_well_when_nothing_is_missing_and_the_broker_was_reached_where_it_must_be() {
        let with = |unwell: &[&str], needed: bool, acks: u64| {
            let system = json!({"uplink_needed": needed, "confirm_s": 77});
            judge(&json!({"unwell": unwell, "system": system, "link": {"acknowledge": {"n": acks}}}))
        };
        assert_eq!(with(&[], false, 0), Found::Well);
        assert_eq!(with(&[], true, 1), Found::Well);
        assert_eq!(with(&[], true, 0), Found::NoUplink(77));
        assert_eq!(with(&["no model"], true, 1), Found::Lacks("no model".into()));
        assert!(matches!(judge(&json!({"unwell": [], "system": null})), Found::Lacks(_)));
    }
}
