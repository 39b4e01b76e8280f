//! Every way a client can be set up shows the same screen and takes the same typing.

use anyhow::Result;
use fanlight_tests::client::{Connect, Program};
use fanlight_tests::guest::at_prompt;
use fanlight_tests::picture::Likeness::{self, Decibels, Exact, HighColor};

use crate::harness::Journey;
use crate::world::{Desk, enter, font, new_word};

/// What RemoteFX may lose on a screen of text.
const REMOTEFX: Likeness = Decibels(30.0);

/// How a client is started, and how well its picture has to agree with the guest's.
struct Mode {
    name: &'static str,
    options: &'static [&'static str],
    likeness: Likeness,
}

const fn mode(name: &'static str, options: &'static [&'static str], likeness: Likeness) -> Mode {
    Mode { name, options, likeness }
}

const FREERDP_3: &[Mode] = &[
    mode("nla", &["/sec:nla"], Exact),
    mode("tls", &["/sec:tls"], Exact),
    mode("gfx", &["/gfx"], Exact),
    mode("gfx_remotefx", &["/gfx:RFX"], Exact),
    mode("gfx_progressive", &["/gfx:progressive"], Exact),
    mode("gfx_avc444", &["/gfx:AVC444"], Exact),
    mode("gfx_avc420", &["/gfx:AVC420"], Exact),
    mode("gfx_small_cache", &["/gfx:small-cache"], Exact),
    mode("bitmaps", &["-gfx"], Exact),
    mode("bitmaps_without_compression", &["-gfx", "-compression"], Exact),
    mode("bitmaps_of_24_bits", &["-gfx", "/bpp:24"], Exact),
    mode("bitmaps_of_16_bits", &["-gfx", "/bpp:16"], HighColor),
    mode("remotefx", &["-gfx", "+rfx"], REMOTEFX),
    mode("remotefx_on_a_lan", &["-gfx", "+rfx", "/network:lan"], REMOTEFX),
];

const FREERDP_2: &[Mode] = &[
    mode("default", &[], Exact),
    mode("tls", &["/sec:tls"], Exact),
    mode("gfx", &["/gfx"], Exact),
    mode("gfx_avc444", &["/gfx:AVC444"], Exact),
    mode("bitmaps", &["-gfx"], Exact),
    mode("bitmaps_of_16_bits", &["-gfx", "/bpp:16"], HighColor),
    mode("remotefx", &["-gfx", "/rfx"], REMOTEFX),
];

/// A way to say which VM is meant.
struct Route {
    name: &'static str,
    connect: fn(&Desk<'_>) -> Connect,
}

const ROUTES: &[Route] = &[
    Route { name: "vm_and_user", connect: |desk| desk.connect() },
    Route {
        name: "domain",
        connect: |desk| desk.connect_as(&desk.person.name).with([format!("/d:{}", desk.guest.name())]),
    },
    Route { name: "vm_and_user_over_tls", connect: |desk| desk.connect().with(["/sec:tls"]) },
    Route {
        name: "user_at_vm",
        connect: |desk| desk.connect_as(&format!("{}#{}", desk.person.name, desk.guest.name())),
    },
    Route {
        name: "preconnection_blob",
        connect: |desk| desk.connect_as(&desk.person.name).with([format!("/pcb:{}", desk.guest.name())]),
    },
    Route {
        name: "preconnection_blob_with_uuid_over_tls",
        connect: |desk| {
            desk.connect_as(&desk.person.name).with([format!("/pcb:{}", desk.guest.uuid()), "/sec:tls".to_owned()])
        },
    },
    Route {
        name: "load_balance_info",
        connect: |desk| {
            let token = format!("/load-balance-info:Cookie: msts=vm.{}", desk.guest.name());
            desk.connect_as(&desk.person.name).with([token])
        },
    },
    Route {
        // FreeRDP 3.10 refuses its own `/vmconnect`, with a value and without.
        name: "vmconnect",
        connect: |desk| {
            let connect = desk.connect_as(&desk.person.name).program(Program::FreeRdp2);
            // It overwrites the port of `/v:` with 2179.
            connect
                .with([format!("/vmconnect:{}", desk.guest.uuid()), format!("/port:{}", desk.gateway.address().port())])
        },
    },
];

pub(crate) fn journeys() -> Vec<Journey> {
    let of = |program: Program, prefix: &'static str, modes: &'static [Mode]| {
        modes.iter().map(move |mode| {
            let name = format!("modes::{prefix}::{}", mode.name);
            Journey::new(&name, move |world| {
                world.on_guest(|desk| {
                    agrees(desk, &desk.connect().program(program).with(mode.options.iter().copied()), mode.likeness)
                })
            })
        })
    };
    let routes = ROUTES.iter().map(|route| {
        let name = format!("modes::route::{}", route.name);
        Journey::new(&name, |world| world.on_guest(|desk| agrees(desk, &(route.connect)(desk), Exact)))
    });
    let freerdp_3 = of(Program::FreeRdp3, "freerdp_3", FREERDP_3);
    freerdp_3.chain(of(Program::FreeRdp2, "freerdp_2", FREERDP_2)).chain(routes).collect()
}

/// Types a command and compares what the client shows with what the guest shows.
fn agrees(desk: &Desk<'_>, connect: &Connect, likeness: Likeness) -> Result<()> {
    let client = connect.open()?;
    let word = new_word();
    enter(&client, &format!("echo {word}"))?;
    // Read from the client's own picture: a few wrong pixels more and it would not be text.
    client.wait_for_screen(font()?, &word, |screen| screen.has_line(&word) && at_prompt(screen))?;
    client.wait_for_picture(likeness, || desk.guest.picture())?;
    client.close()
}
