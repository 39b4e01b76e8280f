//! The devices themselves, made through `/dev/uinput`. Closing it takes them away.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;

use console::LockKeys;
use input_linux::sys::{input_event, timeval};
use input_linux::{
    AbsoluteAxis, AbsoluteInfo, AbsoluteInfoSetup, EventKind, InputId, InputProperty, Key, LedKind, RelativeAxis,
    UInputHandle,
};
use rustix::fs::OFlags;

use super::Devices;
use super::evdev::{AXIS_MAX, Device, Event};
use super::{pen, pointer, scancode, touch};

const UINPUT: &str = "/dev/uinput";
/// `BUS_VIRTUAL`.
const BUS_VIRTUAL: u16 = 0x06;
/// Programs ignore tablets whose size is unknown: in units per millimetre, and per radian for angles in degrees.
const TABLET_RESOLUTION: i32 = 100;
const DEGREES_PER_RADIAN: i32 = 57;

/// All devices of one channel.
pub(super) struct UinputDevices {
    keyboard: UInputHandle<File>,
    pointer: UInputHandle<File>,
    relative_pointer: UInputHandle<File>,
    touch_screen: UInputHandle<File>,
    pen: UInputHandle<File>,
    lights: LockKeys,
}

impl UinputDevices {
    pub(super) fn create() -> io::Result<Self> {
        Ok(Self {
            keyboard: keyboard()?,
            pointer: absolute_pointer()?,
            relative_pointer: relative_pointer()?,
            touch_screen: touch_screen()?,
            pen: tablet()?,
            lights: LockKeys::default(),
        })
    }

    const fn handle(&self, device: Device) -> &UInputHandle<File> {
        match device {
            Device::Keyboard => &self.keyboard,
            Device::Pointer => &self.pointer,
            Device::RelativePointer => &self.relative_pointer,
            Device::TouchScreen => &self.touch_screen,
            Device::Pen => &self.pen,
        }
    }
}

impl Devices for UinputDevices {
    fn emit(&mut self, device: Device, events: &[Event]) -> io::Result<()> {
        let events: Vec<input_event> = events.iter().map(raw).collect();
        self.handle(device).write(&events).map(drop)
    }

    fn lights_changes(&self) -> BorrowedFd<'_> {
        self.keyboard.as_inner().as_fd()
    }

    fn poll_lights(&mut self) -> Option<LockKeys> {
        let before = self.lights;
        let mut events = [raw(&Event::SYN); 16];
        while let Ok(count @ 1..) = self.keyboard.read(&mut events) {
            for event in events.iter().take(count).filter(|event| event.type_ == EventKind::Led.code()) {
                let is_on = event.value != 0;
                match LedKind::from_code(event.code) {
                    Ok(LedKind::NumLock) => self.lights.num = is_on,
                    Ok(LedKind::CapsLock) => self.lights.caps = is_on,
                    Ok(LedKind::ScrollLock) => self.lights.scroll = is_on,
                    _ => {}
                }
            }
        }
        (self.lights != before).then_some(self.lights)
    }
}

fn raw(event: &Event) -> input_event {
    let time = timeval { tv_sec: 0, tv_usec: 0 };
    input_event { time, type_: event.kind.code(), code: event.code, value: event.value }
}

fn open() -> io::Result<UInputHandle<File>> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    Ok(UInputHandle::new(OpenOptions::new().read(true).write(true).custom_flags(flags).open(UINPUT)?))
}

fn create(
    handle: UInputHandle<File>,
    name: &str,
    product: u16,
    axes: &[AbsoluteInfoSetup],
) -> io::Result<UInputHandle<File>> {
    let id = InputId { bustype: BUS_VIRTUAL, vendor: 0, product, version: 1 };
    handle.create(&id, name.as_bytes(), 0, axes)?;
    Ok(handle)
}

fn keyboard() -> io::Result<UInputHandle<File>> {
    let handle = open()?;
    handle.set_evbit(EventKind::Key)?;
    scancode::keys().try_for_each(|key| handle.set_keybit(key))?;
    handle.set_evbit(EventKind::Led)?;
    [LedKind::NumLock, LedKind::CapsLock, LedKind::ScrollLock]
        .into_iter()
        .try_for_each(|led| handle.set_ledbit(led))?;
    create(handle, "Fanlight keyboard", 1, &[])
}

fn absolute_pointer() -> io::Result<UInputHandle<File>> {
    let handle = open()?;
    buttons(&handle)?;
    handle.set_evbit(EventKind::Relative)?;
    let wheels = [
        RelativeAxis::Wheel,
        RelativeAxis::WheelHiRes,
        RelativeAxis::HorizontalWheel,
        RelativeAxis::HorizontalWheelHiRes,
    ];
    wheels.into_iter().try_for_each(|wheel| handle.set_relbit(wheel))?;
    let axes = [axis(AbsoluteAxis::X, 0, AXIS_MAX, 0), axis(AbsoluteAxis::Y, 0, AXIS_MAX, 0)];
    absolute(&handle, &axes)?;
    create(handle, "Fanlight pointer", 2, &axes)
}

/// It has the buttons that a mouse must have; they are never pressed here.
fn relative_pointer() -> io::Result<UInputHandle<File>> {
    let handle = open()?;
    buttons(&handle)?;
    handle.set_evbit(EventKind::Relative)?;
    [RelativeAxis::X, RelativeAxis::Y].into_iter().try_for_each(|axis| handle.set_relbit(axis))?;
    create(handle, "Fanlight relative pointer", 3, &[])
}

fn touch_screen() -> io::Result<UInputHandle<File>> {
    let handle = open()?;
    handle.set_propbit(InputProperty::Direct)?;
    handle.set_evbit(EventKind::Key)?;
    handle.set_keybit(Key::ButtonTouch)?;
    let turn = touch::MAX_ORIENTATION;
    let axes = [
        axis(AbsoluteAxis::X, 0, AXIS_MAX, 0),
        axis(AbsoluteAxis::Y, 0, AXIS_MAX, 0),
        axis(AbsoluteAxis::MultitouchSlot, 0, i32::from(touch::SLOTS) - 1, 0),
        axis(AbsoluteAxis::MultitouchTrackingId, 0, touch::MAX_TRACKING_ID, 0),
        axis(AbsoluteAxis::MultitouchToolType, 0, touch::TOOL_PALM, 0),
        axis(AbsoluteAxis::MultitouchPositionX, 0, AXIS_MAX, 0),
        axis(AbsoluteAxis::MultitouchPositionY, 0, AXIS_MAX, 0),
        axis(AbsoluteAxis::MultitouchPressure, 0, AXIS_MAX, 0),
        axis(AbsoluteAxis::MultitouchTouchMajor, 0, AXIS_MAX, 0),
        axis(AbsoluteAxis::MultitouchTouchMinor, 0, AXIS_MAX, 0),
        axis(AbsoluteAxis::MultitouchOrientation, -turn, turn, 0),
    ];
    absolute(&handle, &axes)?;
    create(handle, "Fanlight touch screen", 4, &axes)
}

fn tablet() -> io::Result<UInputHandle<File>> {
    let handle = open()?;
    handle.set_propbit(InputProperty::Direct)?;
    handle.set_evbit(EventKind::Key)?;
    let keys = [Key::ButtonToolPen, Key::ButtonToolRubber, Key::ButtonTouch, Key::ButtonStylus];
    keys.into_iter().try_for_each(|key| handle.set_keybit(key))?;
    let (tilt, (turned_left, turned_right)) = (pen::MAX_TILT, pen::ROTATION);
    let axes = [
        axis(AbsoluteAxis::X, 0, AXIS_MAX, TABLET_RESOLUTION),
        axis(AbsoluteAxis::Y, 0, AXIS_MAX, TABLET_RESOLUTION),
        axis(AbsoluteAxis::Pressure, 0, AXIS_MAX, 0),
        axis(AbsoluteAxis::TiltX, -tilt, tilt, DEGREES_PER_RADIAN),
        axis(AbsoluteAxis::TiltY, -tilt, tilt, DEGREES_PER_RADIAN),
        axis(AbsoluteAxis::Z, turned_left, turned_right, DEGREES_PER_RADIAN),
    ];
    absolute(&handle, &axes)?;
    create(handle, "Fanlight pen", 5, &axes)
}

fn buttons(handle: &UInputHandle<File>) -> io::Result<()> {
    handle.set_evbit(EventKind::Key)?;
    pointer::BUTTONS.into_iter().try_for_each(|button| handle.set_keybit(button))
}

fn absolute(handle: &UInputHandle<File>, axes: &[AbsoluteInfoSetup]) -> io::Result<()> {
    handle.set_evbit(EventKind::Absolute)?;
    axes.iter().try_for_each(|setup| handle.set_absbit(setup.axis))
}

const fn axis(axis: AbsoluteAxis, minimum: i32, maximum: i32, resolution: i32) -> AbsoluteInfoSetup {
    AbsoluteInfoSetup { axis, info: AbsoluteInfo { value: 0, minimum, maximum, fuzz: 0, flat: 0, resolution } }
}

#[cfg(test)]
mod tests {
    use console::{KeyState, Scancode};

    use super::*;

    /// On a machine with `/dev/uinput` that we may open; elsewhere there is nothing to try.
    #[test]
    fn the_kernel_takes_our_devices() {
        let Ok(mut devices) = UinputDevices::create() else {
            assert!(open().is_err(), "/dev/uinput can be opened but makes no devices");
            return;
        };
        let mut events = Vec::new();
        let scancode = Scancode::plain(0x2a);
        for state in [KeyState::Pressed, KeyState::Released] {
            super::super::Keyboard::default().handle(console::KeyEvent::Key { scancode, state }, &mut events);
        }
        devices.emit(Device::Keyboard, &events).unwrap();
        let listed = std::fs::read_to_string("/proc/bus/input/devices").unwrap();
        for name in ["keyboard", "pointer", "relative pointer", "touch screen", "pen"] {
            assert!(listed.contains(&format!("Fanlight {name}")), "{name} is missing");
        }
    }

    #[test]
    fn names_and_numbers_fit_what_the_kernel_has() {
        assert_eq!(raw(&Event::key(Key::A, 1)).type_, 1);
        assert_eq!(raw(&Event::key(Key::A, 1)).code, 30);
        assert_eq!(raw(&Event::absolute(AbsoluteAxis::MultitouchSlot, 3)).code, 0x2f);
    }
}
