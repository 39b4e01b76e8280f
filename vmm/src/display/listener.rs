//! QEMU calls us: `org.qemu.Display1.Listener`, served message by message.
//!
//! QEMU waits in its main loop for some of the answers (the properties, a mapped picture), so each message is
//! answered before the next is read, and nothing here waits for anybody.

use std::io;
use std::sync::Arc;

use console::{Point, Rect, Size};
use zbus::message::{Flags, Header, Type};
use zbus::{Connection, Fd, Message, MessageStream, Variant};

use super::cursor;
use super::dbus::{LISTENER, PROPERTIES, UNIX_MAP, next_message};
use super::monitor::Monitor;
use super::surface::{Layout, MappedScanout, SentScanout};

/// Serves one monitor's calls until the connection ends.
pub(super) async fn serve(mut stream: MessageStream, monitor: Arc<Monitor>) -> zbus::Result<()> {
    let connection = Connection::from(&stream);
    let mut listener = Listener { monitor, sent: None };
    while let Some(message) = next_message(&mut stream).await? {
        if message.message_type() != Type::MethodCall {
            continue;
        }
        let header = message.header();
        let answer = listener.handle(&header, &message);
        if let Err(error) = &answer {
            tracing::debug!(member = ?header.member(), %error, "QEMU's display call is refused");
        }
        if !message.primary_header().flags().contains(Flags::NO_REPLY_EXPECTED) {
            connection.send(&answer_message(&header, answer)?).await?;
        }
    }
    Ok(())
}

fn answer_message(header: &Header<'_>, answer: Result<Answer, CallError>) -> zbus::Result<Message> {
    match answer {
        Ok(Answer::Nothing) => Message::method_return(header).build(&()),
        Ok(Answer::Properties(properties)) => Message::method_return(header).build(&properties),
        Ok(Answer::Property(value)) => Message::method_return(header).build(&value),
        Err(error) => Message::error(header, "org.freedesktop.DBus.Error.Failed").build(&error.to_string()),
    }
}

struct Listener {
    monitor: Arc<Monitor>,
    /// The picture, when it is one that QEMU sends piece by piece.
    sent: Option<Arc<SentScanout>>,
}

enum Answer {
    Nothing,
    Property(Variant<'static>),
    Properties(std::collections::HashMap<&'static str, Variant<'static>>),
}

#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error(transparent)]
    DBus(#[from] zbus::Error),
    #[error(transparent)]
    Picture(#[from] io::Error),
    #[error("no such method")]
    Unknown,
}

impl Listener {
    fn handle(&mut self, header: &Header<'_>, message: &Message) -> Result<Answer, CallError> {
        let interface = header.interface().map_or("", |interface| interface.as_str());
        let member = header.member().map_or("", |member| member.as_str());
        match (interface, member) {
            (UNIX_MAP, "UpdateMap") => self.update_map(message)?,
            (UNIX_MAP, "ScanoutMap") => self.scanout_map(message)?,
            (LISTENER, "Update") => self.update(message)?,
            (LISTENER, "Scanout") => self.scanout(message)?,
            (LISTENER, "MouseSet") => self.mouse_set(message)?,
            (LISTENER, "CursorDefine") => self.cursor_define(message)?,
            (LISTENER, "Disable") => self.disable(),
            (PROPERTIES, "GetAll") => return get_all(message),
            (PROPERTIES, "Get") => return get(message),
            _ => return Err(CallError::Unknown),
        }
        Ok(Answer::Nothing)
    }

    fn update_map(&self, message: &Message) -> Result<(), CallError> {
        let (x, y, width, height): (i32, i32, i32, i32) = message.body().deserialize()?;
        self.monitor.damage(rect(x, y, width, height));
        Ok(())
    }

    fn scanout_map(&mut self, message: &Message) -> Result<(), CallError> {
        let body = message.body();
        let (memfd, offset, width, height, stride, format): (Fd<'_>, u32, u32, u32, u32, u32) = body.deserialize()?;
        let layout = Layout::new(Size::new(width, height), offset, stride, format)?;
        let scanout = MappedScanout::new(memfd, layout)?;
        self.sent = None;
        self.monitor.show(Some(Arc::new(scanout)));
        Ok(())
    }

    fn scanout(&mut self, message: &Message) -> Result<(), CallError> {
        let body = message.body();
        let (width, height, stride, format, data): (u32, u32, u32, u32, &[u8]) = body.deserialize()?;
        let layout = Layout::new(Size::new(width, height), 0, stride, format)?;
        // QEMU sends the whole picture for an update of all of it, too: then it stays the same scanout.
        if let Some(sent) = self.sent.as_ref().filter(|sent| console::Scanout::size(sent.as_ref()) == layout.size()) {
            sent.update(layout.size().rect(), layout, data)?;
            self.monitor.damage(layout.size().rect());
        } else {
            let sent = Arc::new(SentScanout::new(layout, data)?);
            self.sent = Some(sent.clone());
            self.monitor.show(Some(sent));
        }
        Ok(())
    }

    fn update(&self, message: &Message) -> Result<(), CallError> {
        let body = message.body();
        let (x, y, width, height, stride, format, data): (i32, i32, i32, i32, u32, u32, &[u8]) = body.deserialize()?;
        let rect = rect(x, y, width, height);
        let layout = Layout::new(Size::new(rect.width, rect.height), 0, stride, format)?;
        let sent = self.sent.as_ref().ok_or_else(|| io::Error::other("an update without a picture"))?;
        sent.update(rect, layout, data)?;
        self.monitor.damage(rect);
        Ok(())
    }

    fn disable(&mut self) {
        self.sent = None;
        self.monitor.show(None);
    }

    fn mouse_set(&self, message: &Message) -> Result<(), CallError> {
        let (x, y, on): (i32, i32, i32) = message.body().deserialize()?;
        let coordinate = |value: i32| u32::try_from(value).unwrap_or(0);
        self.monitor.change_cursor(|cursor| {
            cursor.hidden = on == 0;
            if on != 0 {
                cursor.position = Some(Point { x: coordinate(x), y: coordinate(y) });
            }
        });
        Ok(())
    }

    fn cursor_define(&self, message: &Message) -> Result<(), CallError> {
        let body = message.body();
        let (width, height, hot_x, hot_y, data): (i32, i32, i32, i32, &[u8]) = body.deserialize()?;
        let shape = cursor::shape(width, height, hot_x, hot_y, data)
            .ok_or_else(|| io::Error::other(format!("a cursor of {width}x{height} pixels in {} bytes", data.len())))?;
        self.monitor.change_cursor(|cursor| cursor.shape = Some(shape));
        Ok(())
    }
}

/// The part of QEMU's signed rectangle that can lie on a monitor.
fn rect(x: i32, y: i32, width: i32, height: i32) -> Rect {
    let edge = |value: i64| u32::try_from(value.max(0)).unwrap_or(u32::MAX);
    let (left, top) = (edge(x.into()), edge(y.into()));
    let right = edge(i64::from(x) + i64::from(width));
    let bottom = edge(i64::from(y) + i64::from(height));
    Rect::new(left, top, right.saturating_sub(left), bottom.saturating_sub(top))
}

/// The optional interfaces we have; QEMU before 8.2 (or so) knows none of them and sends its pictures.
fn interfaces() -> Variant<'static> {
    Variant::from(vec![UNIX_MAP])
}

fn get_all(message: &Message) -> Result<Answer, CallError> {
    let body = message.body();
    let interface: &str = body.deserialize()?;
    let ours = (interface == LISTENER).then(|| ("Interfaces", interfaces()));
    Ok(Answer::Properties(ours.into_iter().collect()))
}

fn get(message: &Message) -> Result<Answer, CallError> {
    let body = message.body();
    match body.deserialize::<(&str, &str)>()? {
        (LISTENER, "Interfaces") => Ok(Answer::Property(interfaces())),
        _ => Err(CallError::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rectangles_partly_off_the_monitor_keep_the_part_on_it() {
        assert_eq!(rect(-5, -5, 10, 10), Rect::new(0, 0, 5, 5));
        assert_eq!(rect(3, 4, 5, 6), Rect::new(3, 4, 5, 6));
        assert!(rect(3, 4, -5, 6).is_empty());
        assert!(rect(i32::MAX, 0, i32::MAX, 1).right() > 0);
        assert!(rect(i32::MIN, i32::MIN, i32::MIN, i32::MIN).is_empty());
    }
}
