//! Which model: the request's, else the config's, else the local one; never a paid one unasked.

use std::sync::Arc;

use ksi_kernel::{Code, Error, Result};

use super::{
    facts::Reason,
    provider::{Provider, Providers},
};

/// What answers when neither request nor config names a model: free, and on this machine.
const FALLBACK: &str = "local";

/// Providers that people may ask for and that this version does not have.
const NOT_BUILT: [&str; 6] = ["claude-cli", "anthropic", "openai", "ollama", "gemini", "command"];

/// A model and the provider that has it.
pub(super) struct Choice {
    /// The model's full name.
    pub(super) model: String,
    /// The provider's name.
    pub(super) name: String,
    /// The provider.
    pub(super) provider: Arc<dyn Provider>,
}

impl Choice {
    /// Refuses a model that cannot be asked, as far as this machine tells.
    pub(super) fn check(&self) -> Result<()> {
        let checked = self.provider.check(&self.model);
        let refused = |failure| Error::from(Reason::from(failure)).at("model").retryable(false);
        checked.map_err(refused)
    }
}

/// Chooses the model that a request gets.
pub(super) fn choose(
    providers: &Providers,
    requested: Option<&str>,
    default: Option<&str>,
) -> Result<Choice> {
    let given = |name: &Option<&str>| name.is_some_and(|name| !name.trim().is_empty());
    let model = [requested, default].into_iter().find(given).flatten().unwrap_or(FALLBACK).trim();
    let name = provider_of(model);
    if let Some(provider) = providers.get(name) {
        let (model, provider) = (model.to_owned(), provider.clone());
        return Ok(Choice { model, name: name.to_owned(), provider });
    }
    let known: Vec<_> = providers.describe().into_iter().map(|d| d.name).collect();
    let hint = format!("providers of this version: {}", known.join(", "));
    if NOT_BUILT.contains(&name) {
        let why = format!("provider `{name}` of model `{model}` is not built in this version");
        return Err(Error::new(Code::Unavailable, why).at("model").hint(hint).retryable(false));
    }
    let why = format!("no provider is named `{name}`, as in model `{model}`");
    Err(Error::bad_params(why).at("model").hint(hint))
}

/// The provider's part of a model's name: `claude-cli/sonnet`, `local:/models/x.gguf`.
fn provider_of(model: &str) -> &str {
    model.split(['/', ':']).next().unwrap_or(model)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::provider::testing::Panicking;

    fn chosen(requested: Option<&str>, default: Option<&str>) -> Result<(String, String)> {
        let known: [Arc<dyn Provider>; 2] =
            [Arc::new(Panicking("local")), Arc::new(Panicking("scripted"))];
        let choice = choose(&Providers::new(known.into()), requested, default)?;
        Ok((choice.model, choice.name))
    }

    #[test]
    fn the_request_wins_over_the_config_and_the_config_over_local() {
        let pair = |model: &str, name: &str| Ok((model.to_owned(), name.to_owned()));
        assert_eq!(chosen(Some("scripted/a"), Some("local")), pair("scripted/a", "scripted"));
        assert_eq!(chosen(None, Some("scripted:/b.yaml")), pair("scripted:/b.yaml", "scripted"));
        assert_eq!(chosen(Some(" "), None), pair("local", "local"));
        assert_eq!(chosen(None, None), pair("local", "local"));
        assert_eq!(chosen(Some("local:/x/y.gguf"), None), pair("local:/x/y.gguf", "local"));
    }

    #[test]
    fn an_unknown_provider_is_refused_with_the_known_ones() {
        let error = chosen(Some("chatty/large"), None).unwrap_err();
        assert_eq!((error.code, error.path.as_deref()), (Code::BadParams, Some("model")));
        assert_eq!(error.hint.unwrap(), "providers of this version: local, scripted");
    }

    #[test]
    fn a_provider_that_is_not_built_says_so_and_is_not_worth_a_retry() {
        let error = chosen(Some("claude-cli/sonnet"), None).unwrap_err();
        assert_eq!((error.code, error.retryable), (Code::Unavailable, false));
        assert!(error.message.contains("not built in this version"), "{error}");
    }
}
