//! Whom the files of sockets belong to that troop binds for an app, and who may connect to them.

use troop::activation::ActivationSocket;
use troop::{Error, Setup};

use crate::config;
use crate::resolve::ResolvedApp;

impl ResolvedApp {
    /// Gives sockets at paths to the user of the workers, with the mode of `socket_mode`, or what the
    /// workers' umask leaves.
    pub(crate) fn with_access(
        &self,
        sockets: Vec<ActivationSocket>,
    ) -> Result<Vec<ActivationSocket>, Error> {
        let setup = self.identity(Setup::new())?;
        let octal = |text: &String| config::octal(text).map_err(Error::Settings);
        let mode = match (&self.app.socket_mode, &self.app.umask) {
            (Some(mode), _) => Some(octal(mode)?),
            (None, Some(umask)) => Some(0o777 & !octal(umask)?),
            (None, None) => None,
        };
        let (uid, gid) = (setup.get_uid(), setup.get_gid());
        sockets.into_iter().map(|socket| socket.access(uid, gid, mode)).collect()
    }
}
