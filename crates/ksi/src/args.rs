//! The command line's grammar.

use std::{ffi::OsString, path::PathBuf};

use clap::{Parser, Subcommand, ValueEnum};

/// Kubernetes-style infrastructure for AI agents.
#[derive(Debug, Parser)]
#[command(name = "ksi", version, propagate_version = true)]
pub(crate) struct Args {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,

    /// How to print data.
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: Format,

    /// Do not start the daemon when none runs.
    #[arg(long, global = true)]
    pub(crate) no_start: bool,
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the daemon in the background, or do nothing when it runs.
    Start {
        /// Stay in this terminal and log to it.
        #[arg(long)]
        foreground: bool,
    },
    /// Stop the daemon; work that has not finished goes on at the next start.
    Stop,
    /// Stop the daemon if it runs, and start this version of it.
    Restart,
    /// Print what the daemon has logged in the background.
    Logs {
        /// Go on as more comes, until Ctrl-C.
        #[arg(short, long)]
        follow: bool,
        /// So many of the last lines.
        #[arg(short = 'n', long, default_value_t = 100)]
        lines: usize,
    },
    /// Say whether the daemon runs; exit code 3 when it does not.
    Status,
    /// Say how the daemon is; exit code 1 when something is wrong.
    Health,
    /// Look at what the daemon stands on; exit code 1 when something does not work.
    Doctor,
    /// Let agents talk to each other about a topic.
    Orchestrate(Wish),
    /// Send an event and print its reply.
    Emit {
        /// The event, such as `state:set`.
        event: String,
        /// A JSON object, `-` for one on stdin, or fields as key=value.
        data: Vec<String>,
    },
    /// Print the events that match, as they happen; goes on when the daemon comes back.
    Listen {
        /// Names, `namespace:*`, or `*` for everything.
        #[arg(required = true)]
        patterns: Vec<String>,
        /// Begin behind this sequence number.
        #[arg(long, allow_negative_numbers = true, value_parser = whole)]
        since: Option<u64>,
    },
    /// List the events that the daemon answers and publishes.
    Discover {
        /// A namespace or an event.
        what: Option<String>,
        /// As the reference in docs/events.md.
        #[arg(long)]
        markdown: bool,
    },
    /// Fetch and list local models.
    Model {
        /// What to do with models.
        #[command(subcommand)]
        verb: ModelVerb,
    },
    /// Make and list snapshots, from which a daemon starts fast.
    Checkpoint {
        /// What to do with snapshots.
        #[command(subcommand)]
        verb: CheckpointVerb,
    },
    /// Look after the journal, where all that happened is kept.
    Journal {
        /// What to do with the journal.
        #[command(subcommand)]
        verb: JournalVerb,
    },
    /// Show and change the configuration.
    Config {
        /// What to do with it.
        #[command(subcommand)]
        verb: ConfigVerb,
    },
    /// Who may do what.
    Permission {
        /// What to do with permissions.
        #[command(subcommand)]
        verb: PermissionVerb,
    },
    /// Copy the journal into one file while the daemon runs.
    Backup {
        /// The new file.
        file: PathBuf,
    },
    /// Bring a backup back; the daemon must not run.
    Restore {
        /// The backup.
        file: PathBuf,
        /// Move aside what is there.
        #[arg(long)]
        replace: bool,
    },
    /// List things of a kind.
    Get {
        /// Which kind.
        #[command(subcommand)]
        kind: Kinds,
    },
    /// Show one thing in full.
    Describe {
        /// Which thing.
        #[command(subcommand)]
        kind: Kind,
    },
}

/// What to do with models.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelVerb {
    /// Fetch a model, once.
    Pull {
        /// Which one; the small default model when none is named.
        name: Option<String>,
    },
    /// List the models that are there.
    List,
}

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum CheckpointVerb {
    /// Make one now.
    Save,
    /// List them, newest first.
    List,
    /// Say how much the next start would have to fold.
    Status,
}

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Say where its file is, or would be.
    Path,
    /// Show every setting, and where its value comes from.
    Show {
        /// As the reference in docs/configuration.md.
        #[arg(long)]
        markdown: bool,
    },
    /// Print one setting.
    Get {
        /// Such as `local.idle_seconds`.
        key: String,
    },
    /// Change one setting in the file, which keeps its comments.
    Set {
        /// Such as `local.idle_seconds`.
        key: String,
        /// A text or a number.
        #[arg(allow_negative_numbers = true)]
        value: String,
    },
    /// Let the daemon read the file again; when it is broken, what held before stays.
    Reload,
}

/// What to do with permissions.
#[derive(Debug, Subcommand)]
pub(crate) enum PermissionVerb {
    /// List the profiles.
    List,
    /// Show what a profile allows.
    Show {
        /// Its name, such as `standard`.
        profile: String,
    },
    /// Show what somebody may do.
    Get {
        /// An agent's name, or a principal such as `launch:x`.
        who: String,
    },
    /// Give somebody a profile.
    Set {
        /// An agent's name, or a principal such as `launch:x`.
        who: String,
        /// The profile's name.
        profile: String,
    },
    /// Say whether somebody may send and see an event; exit code 1 if it may not be sent.
    Check {
        /// The event, such as `agent:spawn`.
        event: String,
        /// An agent's name, or a principal; else yourself.
        #[arg(long = "as", value_name = "WHO")]
        who: Option<String>,
    },
}

/// What to do with the journal.
#[derive(Debug, Subcommand)]
pub(crate) enum JournalVerb {
    /// Say how large it is and how far it reaches.
    Stats,
    /// Check that every fact is what was written.
    Verify,
    /// Give the system back what its file no longer needs.
    Compact,
}

/// Kinds of things that can be listed.
#[derive(Debug, Subcommand)]
pub(crate) enum Kinds {
    /// Debates and the like.
    Orchestrations,
    /// Conversations with models.
    Conversations,
}

/// Things that can be shown.
#[derive(Debug, Subcommand)]
pub(crate) enum Kind {
    /// A debate or the like, with every turn.
    Orchestration {
        /// Its id.
        id: String,
    },
    /// A conversation, with every turn.
    Conversation {
        /// Its id.
        id: String,
    },
}

/// What an orchestration should be.
#[derive(Debug, clap::Args)]
pub(crate) struct Wish {
    /// What to talk about.
    pub(crate) topic: String,
    /// By which pattern.
    #[arg(long, default_value = "debate")]
    pub(crate) mode: String,
    /// How often each speaker speaks.
    #[arg(long, allow_negative_numbers = true, value_parser = whole)]
    pub(crate) rounds: Option<u64>,
    /// With which model, such as `local` or `local:/path.gguf`.
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// The seed of the models that sample, for a debate that can be repeated.
    #[arg(long, allow_negative_numbers = true, value_parser = whole)]
    pub(crate) seed: Option<u64>,
}

fn whole(text: &str) -> Result<u64, &'static str> {
    text.parse().map_err(|_| "it must be a whole number, 0 or more")
}

/// Whether JSON is asked for in a command line that cannot be read as a whole.
pub(crate) fn want_json(args: impl Iterator<Item = OsString>) -> bool {
    let args: Vec<_> = args.take_while(|arg| arg != "--").collect();
    let in_one = |arg: &OsString| arg == "-ojson" || arg == "-o=json" || arg == "--output=json";
    let in_two =
        |pair: &[OsString]| (pair[0] == "-o" || pair[0] == "--output") && pair[1] == "json";
    args.iter().any(in_one) || args.windows(2).any(in_two)
}
