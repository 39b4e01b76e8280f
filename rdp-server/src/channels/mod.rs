//! Virtual channels: bytes of the session's connection ⇄ messages of one channel.
//!
//! | file | what |
//! | --- | --- |
//! | [`mcs`] | the envelope of everything that is not fast-path: TPKT, X.224 data, MCS send-data |
//! | [`static_channel`] | chunks of a static channel (MS-RDPBCGR 3.1.5.2) |
//! | [`dynamic`] | DRDYNVC, the static channel that carries the dynamic ones (MS-RDPEDYC) |
//! | [`display_control`] | the client's wishes for monitors (MS-RDPEDISP) |
//! | [`touch`] | the client's fingers and pens (MS-RDPEI) |

pub mod display_control;
pub mod dynamic;
pub mod mcs;
pub mod static_channel;
pub mod touch;
