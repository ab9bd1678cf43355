//! The verbs, and what the list of verbs says of them. Their options stand at their structs.

use clap::Subcommand;

use super::{
    Admin, Attach, Check, Completions, Deferred, Delete, EnvOf, Events, ExecActivated, Flush,
    Foreground, Init, Jlist, Kill, Logs, Ls, Man, Pid, Ping, Policy, Prettylist, Reload, Reset,
    Restart, Resurrect, Save, Scale, Send, SendSignal, Serve, ServeAdmin, ServeFiles, Show, Signal,
    Start, Startup, Stop, Top, Unstartup, Upgrade, Wait,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program as a cluster, in the foreground
    ///
    /// The program listens as it always does; its copies share the port. Workers that die are restarted.
    /// SIGHUP replaces workers one by one without dropping connections. SIGTERM and SIGINT drain them;
    /// another one (half a second later or more) or SIGQUIT kills them. SIGTTIN and SIGTTOU add and
    /// remove a worker, SIGWINCH ends all workers and keeps the ports until SIGHUP, SIGUSR1 reopens log
    /// files.
    Run(Deferred<Foreground>),
    /// Start apps in the background and wait until they are ready
    ///
    /// Exits with 0 when all workers are ready; otherwise it prints the reason and exits with 1. Output
    /// of the workers goes to files, which `troop logs` shows.
    Start(Deferred<Start>),
    /// List the apps that `troop run` and `troop start` have started
    ///
    /// A Rust program that is a cluster by itself (`troop::role`) is listed only if it runs under
    /// them: `troop run ./server`. CPU and MEMORY are sums over the primary and all workers, `total`
    /// with --json. MEMORY is resident memory (RSS), in which shared pages count for each process.
    #[command(visible_aliases = ["list", "status", "ps", "l"])]
    #[command(after_help = "Examples:
  troop ls
  troop ls --json | jq '.[] | {name, pid, total}'
  troop ls --cpu                       with the CPU in percent, half a second later; --cpu=2s
  troop ls --watch                     until Ctrl-C, once a second; --watch=5s
  troop ls web --quiet                 a probe: nothing is printed

Exit codes: 0 if the app runs, 1 if it does not answer (with --quiet), 3 if it does not run. With --quiet also 4: it runs, but not all of its workers are ready; of several apps the worst counts, and those that were stopped or have finished do only if none runs.")]
    Ls(Deferred<Ls>),
    /// Show an app: its workers, what they listen on, what they use
    #[command(visible_aliases = ["describe", "info"], alias = "desc")]
    #[command(after_help = "Examples:
  troop show web                       all of it
  troop show web:3                     one worker, by its number
  troop show web --cpu                 with the CPU of each worker in percent
  troop show web --quiet               a probe: nothing is printed

Exit codes: 0 if the app runs, 1 if it does not answer or has no such worker, 3 if it does not run. With --quiet also 4: it runs, but not all of its workers are ready, or not that one.")]
    Show(Deferred<Show>),
    /// Show what apps and their workers do, live
    ///
    /// Enter shows the workers of an app, `r` reloads, `+` and `-` scale, `R` restarts and `x` stops it,
    /// after a question; `/` filters, `s` sorts, `q` ends. CPU% is of one CPU; CONN/S counts connections
    /// that workers took.
    #[command(visible_alias = "monit", aliases = ["imonit", "dashboard", "dash"])]
    Top(Deferred<Top>),
    /// Print events of an app as they happen
    Events(Deferred<Events>),
    /// Show the output of an app's workers, and its events
    #[command(visible_alias = "tail", alias = "log")]
    Logs(Deferred<Logs>),
    /// Replace an app's workers without dropping connections
    ///
    /// Re-reads the configuration, then replaces workers one by one: an old worker drains only after its
    /// successor is ready. If a new worker does not become ready, or does not listen on an address that
    /// the old ones share, the old workers stay and the reason is printed. Waits until the reload is
    /// done.
    #[command(aliases = ["startOrReload", "startOrGracefulReload", "gracefulReload"])]
    Reload(Deferred<Reload>),
    /// Stop an app and start it again, re-reading its configuration
    ///
    /// Applies the options that a reload cannot change. Clients are refused or wait until the app is
    /// back; `troop reload` loses no connection.
    #[command(alias = "startOrRestart")]
    Restart(Deferred<Restart>),
    /// Replace troop itself, under running apps: workers and connections stay
    ///
    /// The program as it is installed now, or another one, is started beside the one that runs the app, and
    /// goes on with it as soon as it says that it can. If it does not say so within five seconds, nothing has
    /// changed. What the app is configured to be stays as it is until the next reload. SIGUSR2 does the same.
    Upgrade(Deferred<Upgrade>),
    /// Wait until apps are ready, or do not run any more
    ///
    /// An app is ready when as many workers are as it should have. The wait ends early where that cannot
    /// come: the app does not run, or its workers keep ending and none is ready.
    Wait(Deferred<Wait>),
    /// Change the number of workers
    ///
    /// Waits until the new workers are ready, and those that are too many have drained. If a new worker
    /// does not become ready, prints the reason; the app keeps the number and goes on trying. The number
    /// lasts over `troop restart`, and over `save` and `resurrect`, until the app is stopped or its file
    /// has another one.
    Scale(Deferred<Scale>),
    /// Stop apps; their workers finish the requests in progress
    ///
    /// Apps that `troop start` has started stay listed, and `troop start NAME` starts them again as they
    /// were started before.
    Stop(Deferred<Stop>),
    /// Stop apps and forget how they were started
    #[command(visible_alias = "del")]
    Delete(Deferred<Delete>),
    /// Save the list of apps that run, for `troop resurrect`
    ///
    /// Only apps that `troop start` has started are saved, with the environment that they were started
    /// in.
    #[command(visible_alias = "dump")]
    Save(Deferred<Save>),
    /// Start the apps that `troop save` has saved
    ///
    /// Apps of the list that run already are left alone.
    Resurrect(Deferred<Resurrect>),
    /// Change the scheduling of a running app, until it ends
    ///
    /// The app's name comes first, then the policy: with ADDR= for the listeners of one port, address or
    /// path, alone for all others. An open listener cannot change to or from `shared`, nor to `steered`
    /// and `auto` if it was opened without sockets for its workers; it changes when it is opened the
    /// next time, which the output says.
    Policy(Deferred<Policy>),
    /// Send a signal to an app's workers
    Signal(Deferred<Signal>),
    /// Send a message to an app's workers
    ///
    /// Node workers receive it by `process.on('message')`, Rust workers by `Worker::next_event`. A
    /// message that is not JSON is sent as text. With --ask, each worker replies: Rust workers answer a
    /// `Request`; a Node worker receives `{ troop: 'request', id, body }` and answers by
    /// `process.send({ troop: 'reply', id, body })`.
    Send(Deferred<Send>),
    /// Check a configuration file without starting anything
    Check(Deferred<Check>),
    /// Write a first troop.toml
    #[command(alias = "ecosystem")]
    Init(Deferred<Init>),
    /// Write systemd units, so that apps start at boot
    ///
    /// Each app of a file becomes a service that systemd starts, reloads, watches and stops. Without a
    /// file, one service starts the apps that `troop save` has saved.
    Startup(Deferred<Startup>),
    /// Remove the systemd units that `troop startup` has written
    ///
    /// Apps that run go on running.
    Unstartup(Deferred<Unstartup>),
    /// Print all workers as PM2's `jlist` does
    ///
    /// One object per worker, or per app that does not run: `name`, `pid`, `pm_id` (the app's number),
    /// `monit` (`cpu` in percent since the worker's start, `memory`) and `pm2_env` with `status`,
    /// `restart_time`, `pm_uptime`. `troop ls --json` has more.
    Jlist(Deferred<Jlist>),
    /// Print the same on several lines
    Prettylist(Deferred<Prettylist>),
    /// Print the process numbers of workers
    Pid(Deferred<Pid>),
    /// Print the environment of an app's workers, with secrets masked
    ///
    /// Values of variables whose name says that they are secret, and passwords in URLs and options (`password=…`), and private keys are masked.
    Env(Deferred<EnvOf>),
    /// Empty the log files of apps
    Flush(Deferred<Flush>),
    /// Set the number of restarts of apps to 0
    Reset(Deferred<Reset>),
    /// Print `pong`: there is no daemon that could fail to
    Ping(Deferred<Ping>),
    /// Stop all apps
    Kill(Deferred<Kill>),
    /// Send a signal to an app's workers: `troop signal` with its arguments the other way round
    #[command(name = "sendSignal")]
    SendSignal(Deferred<SendSignal>),
    /// Follow the output of an app, and pass lines of input on to a worker
    ///
    /// Each line is written to the worker's standard input. Ctrl-C ends it, Ctrl-D too; the app goes on. With
    /// a pipe or file as its input it ends after that, with what the worker answers at once.
    /// Only apps in the background have input, except jobs and those of other users (`user`).
    Attach(Deferred<Attach>),
    /// Serve the files of a directory in the background
    ///
    /// `index.html` stands for its directory, `404.html` for files that there are not. Hidden files are
    /// not served, except below `.well-known`, nor is what links outside the directory lead to.
    #[command(alias = "expose")]
    Serve(Deferred<Serve>),
    /// The worker of `troop serve`
    #[command(hide = true)]
    ServeFiles(Deferred<ServeFiles>),
    /// Serve readiness, metrics and events of all apps over HTTP, in the background
    ///
    /// `/ready` and `/live` answer probes with 200 or 503 and a reason, of all apps or of one
    /// (`?app=web`); `/metrics` is for Prometheus. Everybody who reaches the port can read these.
    /// `/snapshot`, `/events` (server-sent events) and `POST /apps/APP/VERB` need the token, as
    /// `Authorization: Bearer TOKEN`.
    Admin(Deferred<Admin>),
    /// The worker of `troop admin`
    #[command(hide = true)]
    ServeAdmin(Deferred<ServeAdmin>),
    /// Execute a program that takes its sockets by activation, behind a shell or npm
    ///
    /// With `bind` (-b), troop passes sockets as systemd does, and LISTEN_PID says for which process. What
    /// a shell or npm starts is another process, and many programs then ignore the sockets. This verb
    /// checks that LISTEN_FDS and the sockets have arrived, sets LISTEN_PID to its own process and
    /// executes the program in its place. Sockets that were closed on the way, as by npm, are fetched
    /// from the process that has them.
    ExecActivated(Deferred<ExecActivated>),
    /// Write a shell's completions to standard output
    Completions(Deferred<Completions>),
    /// Write manual pages into a directory, one for each command
    Man(Deferred<Man>),
}
