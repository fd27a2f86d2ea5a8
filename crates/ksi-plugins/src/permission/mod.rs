//! Permission: who may send and see what, by profiles that are files.

mod grants;
mod profile;

use std::sync::Arc;

use ksi_kernel::{Act, Caller, Code, Ctx, Error, Facts, Pattern, Plugin, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use grants::{Granted, Grants};
pub use profile::{Faulty, Profile};

use crate::{
    Settings,
    library::{Entry, Library, NotLoaded},
};

/// The profiles that come with KSI.
const BUILT_IN: &[(&str, &str)] = &[
    ("restricted", include_str!("../../permissions/restricted.yaml")),
    ("standard", include_str!("../../permissions/standard.yaml")),
    ("trusted", include_str!("../../permissions/trusted.yaml")),
    ("researcher", include_str!("../../permissions/researcher.yaml")),
];

/// What somebody has who was never given anything.
const FALLBACK: &str = "restricted";

/// The plugin: `permission:list_profiles get_profile set_agent get_agent validate_spawn check`,
/// and the guard.
pub fn plugin(settings: &Arc<Settings>) -> Plugin<Grants> {
    let profiles = Arc::new(Profiles::new(settings));
    let with = || profiles.clone();
    let (guard, list, get, set, get_agent) = (with(), with(), with(), with(), with());
    let (validate, check) = (with(), with());
    Plugin::new("permission")
        .guard(move |grants, caller, act, event| {
            let principal = &caller.origin.principal;
            allowed(grants, &guard.fallback, principal, act, event)
        })
        .on("permission:list_profiles", move |_, req| list_profiles(list.clone(), req))
        .on("permission:get_profile", move |_, req| get_profile(get.clone(), req))
        .on("permission:set_agent", move |cx, req| set_agent(set.clone(), cx, req))
        .on("permission:get_agent", move |cx, req| self::get_agent(get_agent.clone(), cx, req))
        .on("permission:validate_spawn", move |cx, req| validate_spawn(validate.clone(), cx, req))
        .on("permission:check", move |cx, req| self::check(check.clone(), cx, req))
        .fact::<Granted>()
        .fold(Grants::granted)
}

/// Where profiles come from.
#[derive(Debug)]
struct Profiles {
    library: Library,
    fallback: Profile,
}

/// The permission profiles there are
#[derive(Debug, Deserialize, JsonSchema)]
struct ListProfiles {}

/// What a permission profile allows
#[derive(Debug, Deserialize, JsonSchema)]
struct GetProfile {
    /// Its name, such as `standard`.
    #[serde(alias = "profile")]
    level: String,
}

/// Give a profile to an agent, or to another principal
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(example = serde_json::json!({ "agent_id": "ada", "level": "standard" }))]
struct SetAgent {
    /// An agent's name, or a principal such as `launch:x`.
    #[serde(alias = "principal")]
    agent_id: String,
    /// The profile's name. It cannot allow more than the sender may.
    #[serde(alias = "profile")]
    level: String,
    /// Who stands above it, so that it never may more than that one: the sender, unless that is
    /// the operator, who may name another.
    #[serde(default)]
    parent: Option<String>,
}

/// What an agent, or another principal, may do
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(example = serde_json::json!({ "agent_id": "ada" }))]
struct GetAgent {
    /// An agent's name, or a principal; the sender itself when it is left out.
    #[serde(default, alias = "principal")]
    agent_id: Option<String>,
}

/// Whether an agent may have a child with this profile
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(example = serde_json::json!({ "level": "standard" }))]
struct ValidateSpawn {
    /// The agent, or another principal; the sender itself when it is left out.
    #[serde(default)]
    parent_id: Option<String>,
    /// The child's profile.
    #[serde(alias = "permission_profile", alias = "profile")]
    level: String,
}

/// Whether somebody may send or see an event
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(example = serde_json::json!({ "event": "agent:spawn", "agent_id": "ada" }))]
struct Check {
    event: String,
    /// An agent's name, or a principal; the sender itself when it is left out.
    #[serde(default, alias = "principal")]
    agent_id: Option<String>,
}

/// Profiles by name.
#[derive(Debug, Serialize, JsonSchema)]
struct Listed {
    profiles: Vec<Line>,
    count: usize,
}

/// One profile.
#[derive(Debug, Serialize, JsonSchema)]
struct Line {
    level: String,
    summary: Option<String>,
    /// None for one that is built in.
    path: Option<String>,
    /// What is wrong with its file.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// A profile and its name.
#[derive(Debug, Serialize, JsonSchema)]
struct Named {
    level: String,
    #[serde(flatten)]
    profile: Profile,
}

/// What somebody may do.
#[derive(Debug, Serialize, JsonSchema)]
struct Rights {
    principal: String,
    level: String,
    parent: Option<String>,
    #[serde(flatten)]
    profile: Profile,
}

/// Whether it may be.
#[derive(Debug, Serialize, JsonSchema)]
struct Valid {
    valid: bool,
    reason: Option<String>,
}

/// What is allowed.
#[derive(Debug, Serialize, JsonSchema)]
struct Checked {
    principal: String,
    event: String,
    may_send: bool,
    may_see: bool,
    reason: Option<String>,
}

impl Profiles {
    /// A fallback of the user's own that cannot be read is replaced by the built-in one.
    fn new(settings: &Settings) -> Profiles {
        let folder = settings.permissions.clone();
        let library = Library { kind: "permission profile", built_in: BUILT_IN, folder };
        let fallback = library.load(FALLBACK, Profile::parse).or_else(|error| {
            tracing::error!(%error, "the built-in profile is used instead");
            Profile::parse(FALLBACK, BUILT_IN[0].1)
        });
        let nothing = || Profile {
            summary: "nothing at all".to_owned(),
            send: Vec::new(),
            never: Vec::new(),
            see: Vec::new(),
        };
        Profiles { library, fallback: fallback.unwrap_or_else(|_| nothing()) }
    }

    async fn load(self: Arc<Self>, level: String) -> Result<Profile> {
        self.read(move |library| library.load(&level, Profile::parse)).await
    }

    async fn read<T: Send + 'static>(
        self: Arc<Self>,
        read: impl FnOnce(&Library) -> Result<T, NotLoaded<Faulty>> + Send + 'static,
    ) -> Result<T> {
        let read = tokio::task::spawn_blocking(move || read(&self.library)).await;
        let read = read.map_err(|_| Error::internal("reading a profile panicked"))?;
        read.map_err(|error| {
            let (code, hint) = match &error {
                NotLoaded::Unknown { .. } => {
                    (Code::NotFound, "`permission:list_profiles` names those there are")
                }
                NotLoaded::Faulty(_) => (Code::BadParams, "mend the file and try again"),
                NotLoaded::Unreadable { .. } => (Code::Unavailable, "check the file's permissions"),
            };
            Error::new(code, error.to_string()).at("level").hint(hint).retryable(false)
        })
    }
}

async fn list_profiles(profiles: Arc<Profiles>, _: ListProfiles) -> Result<Listed> {
    let entries = profiles.read(|library| library.list(Profile::parse)).await?;
    let line = |entry: Entry<Profile, Faulty>| {
        let (summary, error) = match entry.loaded {
            Ok(profile) => (Some(profile.summary), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let path = entry.path.map(|path| path.display().to_string());
        Line { level: entry.name, summary, path, error }
    };
    let profiles: Vec<_> = entries.into_iter().map(line).collect();
    Ok(Listed { count: profiles.len(), profiles })
}

async fn get_profile(profiles: Arc<Profiles>, req: GetProfile) -> Result<Named> {
    let profile = profiles.load(req.level.clone()).await?;
    Ok(Named { level: req.level, profile })
}

async fn set_agent(profiles: Arc<Profiles>, cx: Ctx<Grants>, req: SetAgent) -> Result<Rights> {
    let principal = principal(&req.agent_id, "agent_id")?;
    if matches!(&*principal, "operator" | "system") {
        let error = Error::bad_params(format!("`{principal}` may always do everything"));
        return Err(error.at("agent_id"));
    }
    let profile = profiles.clone().load(req.level.clone()).await?;
    let sender = cx.caller().clone();
    let named =
        req.parent.as_deref().map(|parent| self::principal(parent, "parent")).transpose()?;
    cx.decide(move |grants, _| {
        let before = grants.of(&principal);
        let parent = match sender.is_unbound() {
            true => named.or_else(|| before.and_then(|before| before.parent.clone())),
            false => Some(may_grant(grants, &profiles.fallback, &sender, before, &principal)?),
        };
        if let Some(parent) = &parent {
            within(grants, &profiles.fallback, parent, &profile)?;
        }
        let granted = Granted { principal, level: req.level, profile, parent };
        let rights = Rights::of(granted.clone());
        let same = before == Some(&granted);
        Ok((if same { Facts::none() } else { Facts::one(granted) }, rights))
    })
    .await
}

/// Whom a bound sender stands above: itself, for its own children and for new ones.
fn may_grant(
    grants: &Grants,
    fallback: &Profile,
    sender: &Caller,
    before: Option<&Granted>,
    principal: &str,
) -> Result<String> {
    let own = sender.origin.principal.to_string();
    allowed(grants, fallback, &own, Act::Send, "permission:set_agent")?;
    let parent = before.map(|before| before.parent.as_deref() == Some(&own));
    if principal == own || parent == Some(false) {
        let why = format!("`{own}` may not say what `{principal}` may do");
        return Err(Error::new(Code::Forbidden, why).hint("the operator, or its parent, may"));
    }
    Ok(own)
}

/// Whether all that a profile allows is allowed to a parent.
fn within(grants: &Grants, fallback: &Profile, parent: &str, profile: &Profile) -> Result<()> {
    let of_parent = grants.of(parent).map_or(fallback, |granted| &granted.profile);
    let beyond: Option<&Pattern> = match parent {
        "operator" | "system" => None,
        _ => of_parent.beyond(profile),
    };
    match beyond {
        None => Ok(()),
        Some(beyond) => {
            let why = format!("the profile allows `{beyond}`, which `{parent}` itself may not");
            Err(Error::new(Code::Forbidden, why).hint("choose a narrower profile"))
        }
    }
}

async fn get_agent(profiles: Arc<Profiles>, cx: Ctx<Grants>, req: GetAgent) -> Result<Rights> {
    let principal = whom(cx.caller(), req.agent_id.as_deref())?;
    if matches!(&*principal, "operator" | "system") {
        let everything =
            Profile::parse("everything", "{summary: everything, send: ['*'], see: ['*']}");
        let profile = everything.map_err(|error| Error::internal(error.to_string()))?;
        return Ok(Rights { principal, level: "operator".to_owned(), parent: None, profile });
    }
    cx.read(|grants| match grants.of(&principal) {
        Some(granted) => Rights::of(granted.clone()),
        None => Rights {
            principal,
            level: FALLBACK.to_owned(),
            parent: None,
            profile: profiles.fallback.clone(),
        },
    })
    .await
}

async fn validate_spawn(
    profiles: Arc<Profiles>,
    cx: Ctx<Grants>,
    req: ValidateSpawn,
) -> Result<Valid> {
    let parent = whom(cx.caller(), req.parent_id.as_deref())?;
    let profile = profiles.clone().load(req.level).await?;
    let checked = cx.read(|grants| within(grants, &profiles.fallback, &parent, &profile)).await?;
    let reason = checked.err().map(|error| error.message);
    Ok(Valid { valid: reason.is_none(), reason })
}

async fn check(profiles: Arc<Profiles>, cx: Ctx<Grants>, req: Check) -> Result<Checked> {
    let principal = whom(cx.caller(), req.agent_id.as_deref())?;
    let event = req.event;
    ksi_protocol::check_event_name(&event).map_err(|error| error.at("event"))?;
    let [send, see] = cx
        .read(|grants| {
            [Act::Send, Act::See]
                .map(|act| allowed(grants, &profiles.fallback, &principal, act, &event))
        })
        .await?;
    let (may_send, may_see) = (send.is_ok(), see.is_ok());
    let reason = send.err().or(see.err()).map(|error| error.message);
    Ok(Checked { principal, event, may_send, may_see, reason })
}

/// Whether a principal may do this, or why not.
fn allowed(
    grants: &Grants,
    fallback: &Profile,
    principal: &str,
    act: Act,
    event: &str,
) -> Result<()> {
    if matches!(principal, "operator" | "system") {
        return Ok(());
    }
    let Err(denied) = grants.check(principal, fallback, act, event) else { return Ok(()) };
    let verb = if act == Act::Send { "send" } else { "see" };
    let whose = if denied.principal == principal {
        format!("its profile `{}`", denied.level)
    } else {
        format!("the profile `{}` of `{}` above it", denied.level, denied.principal)
    };
    let why = format!("`{principal}` may not {verb} `{event}`: {whose} does not allow it");
    let hint =
        format!("the operator can give it another: `ksi permission set {principal} PROFILE`");
    Err(Error::new(Code::Forbidden, why).hint(hint))
}

impl Rights {
    fn of(granted: Granted) -> Rights {
        let Granted { principal, level, profile, parent } = granted;
        Rights { principal, level, parent, profile }
    }
}

/// Whom a request is about: somebody named, or its sender.
fn whom(caller: &Caller, named: Option<&str>) -> Result<String> {
    match named {
        Some(name) => principal(name, "agent_id"),
        None => Ok(caller.origin.principal.to_string()),
    }
}

/// A principal from its name, or from that of an agent.
fn principal(name: &str, field: &str) -> Result<String> {
    if matches!(name, "operator" | "system") {
        return Ok(name.to_owned());
    }
    let (kind, rest) = name.split_once(':').unwrap_or(("agent", name));
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let kind_is_plain = !kind.is_empty() && kind.chars().all(plain);
    // What an effect is called may hold more than an agent's name.
    let more =
        |c: char| plain(c) || (kind != "agent" && (c.is_alphanumeric() || "/:@+~".contains(c)));
    let is_name = !rest.is_empty() && !rest.starts_with('.') && rest.chars().all(more);
    if kind_is_plain && is_name && name.len() <= 256 {
        return Ok(format!("{kind}:{rest}"));
    }
    let shown: String = name.chars().take(80).collect();
    Err(Error::bad_params(format!("{shown:?} is neither an agent's name nor a principal"))
        .at(field)
        .hint("letters, digits, `-`, `_` and `.`, such as `ada`, or `kind:name`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_profiles_are_profiles_and_each_is_within_the_next() {
        let of = |name: &str| {
            let (_, text) = BUILT_IN.iter().find(|(known, _)| *known == name).unwrap();
            Profile::parse(name, text).unwrap()
        };
        let [restricted, standard, researcher, trusted] =
            ["restricted", "standard", "researcher", "trusted"].map(of);
        assert_eq!(standard.beyond(&restricted), None);
        assert_eq!(researcher.beyond(&standard), None);
        assert_eq!(trusted.beyond(&researcher), None);
        assert!(restricted.beyond(&standard).is_some() && researcher.beyond(&trusted).is_some());
        for (event, may) in [("agent:spawn", [false, false, true]), ("system:shutdown", [false; 3])]
        {
            let sends = [&restricted, &standard, &trusted].map(|p| p.allows(Act::Send, event));
            assert_eq!(sends, may, "{event}");
        }
    }

    #[test]
    fn an_agents_name_is_a_name_and_no_path() {
        assert_eq!(principal("ada", "agent_id").unwrap(), "agent:ada");
        assert_eq!(principal("launch:x/1", "agent_id").unwrap(), "launch:x/1");
        for wrong in ["", "../../x", "a b", "agent:../x", ":x", "agent:", "a\n", "ä", "x:\u{1b}"] {
            assert!(principal(wrong, "agent_id").is_err(), "{wrong:?}");
        }
        assert!(principal(&"a".repeat(257), "agent_id").is_err());
    }
}
