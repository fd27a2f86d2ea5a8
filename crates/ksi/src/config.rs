//! `ksi config`.

use std::process::ExitCode;

use ksi_plugins::config::{ConfigError, ConfigFile, reference, settings_of};
use serde_json::{Value, json};

use crate::{
    args::ConfigVerb,
    connect::Cx,
    fail::{Usage, refused},
    look::table,
    output::{harmless, json, line},
};

/// Shows and changes the configuration, with and without a daemon.
pub(crate) async fn config(cx: &Cx, verb: &ConfigVerb) -> anyhow::Result<ExitCode> {
    let file = ConfigFile::new(cx.paths.config.join("config.toml"));
    match verb {
        ConfigVerb::Path => line(file.path().display())?,
        ConfigVerb::Show { markdown: true } => line(reference().trim_end())?,
        ConfigVerb::Show { .. } => show(cx, &file)?,
        ConfigVerb::Get { key } => get(cx, &file, key)?,
        ConfigVerb::Set { key, value } => set(cx, &file, key, value).await?,
        ConfigVerb::Reload => {
            let client = cx.running().await?;
            applied(cx, &client.call("config:reload", &json!({})).await?, "the configuration")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(cx: &Cx, file: &ConfigFile) -> anyhow::Result<()> {
    let settings = settings_of(&file.load()?);
    if cx.json() {
        json(&json!({ "path": file.path(), "settings": settings }))?;
        return Ok(());
    }
    let row = |setting: &ksi_plugins::config::Setting| {
        vec![setting.key.clone(), shown(&setting.value), setting.source.clone()]
    };
    table(&["key", "value", "from"], &settings.iter().map(row).collect::<Vec<_>>())
}

fn get(cx: &Cx, file: &ConfigFile, key: &str) -> anyhow::Result<()> {
    let mut settings = settings_of(&file.load()?).into_iter();
    let setting = settings.find(|setting| setting.key == key);
    let setting = setting.ok_or_else(|| usage(&ConfigError::Key { key: key.to_owned() }))?;
    if cx.json() {
        json(&setting)?
    } else {
        line(shown(&setting.value))?
    }
    Ok(())
}

/// A daemon that runs changes the file itself, so that it knows of it.
async fn set(cx: &Cx, file: &ConfigFile, key: &str, value: &str) -> anyhow::Result<()> {
    match cx.running().await {
        Ok(client) => {
            let data = json!({ "key": key, "value": value });
            let reply: Value = client.call("config:set", &data).await.map_err(refused)?;
            applied(cx, &reply, key)
        }
        Err(error) if error.is_free() => {
            file.set(key, value).map_err(|error| match error {
                ConfigError::Key { .. } | ConfigError::Value { .. } => usage(&error).into(),
                other => anyhow::Error::from(other),
            })?;
            applied(cx, &json!({ "status": "applied", "changed": [key] }), key)
        }
        Err(error) => Err(error.into()),
    }
}

fn applied(cx: &Cx, reply: &Value, what: &str) -> anyhow::Result<()> {
    if cx.json() {
        json(reply)?;
        return Ok(());
    }
    let keys = |name: &str| {
        let keys = reply[name].as_array().into_iter().flatten().filter_map(Value::as_str);
        keys.map(harmless).collect::<Vec<_>>().join(", ")
    };
    let (changed, later) = (keys("changed"), keys("from_next_start"));
    if let Some(variable) = reply["overridden_by"].as_str() {
        let variable = harmless(variable);
        line(format!("{what} is set in the file, but {variable} is stronger"))?;
        return Ok(());
    }
    match (changed.is_empty(), later.is_empty()) {
        (true, _) => line(format!("{what} is as it was"))?,
        (false, true) => line(format!("changed: {changed}"))?,
        (false, false) => {
            line(format!("changed: {changed}; {later} from the next start: `ksi restart`"))?;
        }
    }
    Ok(())
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => harmless(text),
        other => other.to_string(),
    }
}

fn usage(error: &ConfigError) -> Usage {
    Usage::new(error.to_string(), "`ksi config show` lists what there is")
}
