/*
 * Makes the text console follow the size of the virtual screen.
 *
 * When the host wishes another size, the kernel sets the mode if it fits the console's frame buffer, but neither
 * grows the buffer nor fits the text to it. A larger buffer comes by binding the graphics driver anew. In between
 * the console is 80x25 and loses what is outside, so its text is put back afterwards, and whoever writes to it
 * is held up for that time (a third of a second under TCG).
 *
 * Sleeps until the kernel reports something.
 */
#include <dirent.h>
#include <fcntl.h>
#include <glob.h>
#include <linux/fb.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/param.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#define DRIVER "/sys/bus/virtio/drivers/virtio_gpu/"
/* Milliseconds without another event, after which the kernel is done with a change. */
#define SETTLE 100

/* From drm/virtgpu_drm.h, which Debian's kernel headers leave out. */
struct drm_virtgpu_resource_create {
    uint32_t target, format, bind, width, height, depth, array_size, last_level, nr_samples, flags;
    uint32_t bo_handle, res_handle, size, stride;
};
struct drm_virtgpu_3d_wait {
    uint32_t handle, flags;
};
#define DRM_IOCTL_VIRTGPU_RESOURCE_CREATE _IOWR('d', 0x44, struct drm_virtgpu_resource_create)
#define DRM_IOCTL_VIRTGPU_WAIT _IOWR('d', 0x48, struct drm_virtgpu_3d_wait)

struct size {
    unsigned width, height;
};

/* What /dev/vcsa0 gives: this header, then a character and an attribute byte per cell. */
struct screen {
    unsigned char rows, columns, x, y;
    unsigned char cells[255 * 255][2];
};

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        perror(path);
    close(fd);
}

static int read_file(const char *path, char *text, size_t space)
{
    int fd = open(path, O_RDONLY);
    ssize_t length = fd < 0 ? -1 : read(fd, text, space - 1);
    close(fd);
    text[length < 0 ? 0 : length] = 0;
    return length > 0;
}

struct wish {
    /* What the text should fill, and what the frame buffer must hold: the smallest and the largest head. */
    struct size screen, buffer;
};

static struct wish wished(void)
{
    struct wish wish = {0};
    struct size mode;
    char path[512], text[4096];
    glob_t found;

    if (glob("/sys/class/drm/card*-*", 0, NULL, &found))
        return wish;
    for (size_t i = 0; i < found.gl_pathc; i++) {
        snprintf(path, sizeof path, "%s/status", found.gl_pathv[i]);
        /* The list of modes is only as new as the last probe. */
        write_file(path, "detect");
        if (!read_file(path, text, sizeof text) || strcmp(text, "connected\n"))
            continue;
        snprintf(path, sizeof path, "%s/modes", found.gl_pathv[i]);
        /* The preferred mode comes first. */
        if (!read_file(path, text, sizeof text) || sscanf(text, "%ux%u", &mode.width, &mode.height) != 2)
            continue;
        if (!wish.screen.width)
            wish.screen = mode;
        wish.screen.width = MIN(wish.screen.width, mode.width);
        wish.screen.height = MIN(wish.screen.height, mode.height);
        wish.buffer.width = MAX(wish.buffer.width, mode.width);
        wish.buffer.height = MAX(wish.buffer.height, mode.height);
    }
    globfree(&found);
    return wish;
}

static int buffer_holds(struct size size)
{
    struct size buffer = {0, 0};
    char text[64];
    if (read_file("/sys/class/graphics/fb0/virtual_size", text, sizeof text))
        sscanf(text, "%u,%u", &buffer.width, &buffer.height);
    return size.width <= buffer.width && size.height <= buffer.height;
}

/* Within the buffer, the kernel sets the mode by itself; what remains is to let the text fill it. */
static void fill(struct size screen)
{
    struct fb_var_screeninfo visible;
    int buffer = open("/dev/fb0", O_RDWR);

    if (ioctl(buffer, FBIOGET_VSCREENINFO, &visible) == 0
        && (visible.xres != screen.width || visible.yres != screen.height)) {
        visible.xres = screen.width;
        visible.yres = screen.height;
        visible.activate = FB_ACTIVATE_NOW | FB_ACTIVATE_ALL;
        if (ioctl(buffer, FBIOPUT_VSCREENINFO, &visible))
            perror("frame buffer");
    }
    close(buffer);
}

/*
 * Waits until the device has answered all that was asked of it: it answers in order, so a question of our own
 * at the end will do. Gives the file that holds what was made for it.
 */
static int drain_device(void)
{
    struct drm_virtgpu_resource_create question = {
        .target = 2, .format = 1, .width = 16, .height = 16, .depth = 1, .array_size = 1, .size = 4096};
    struct drm_virtgpu_3d_wait answer = {0};
    int card = open("/dev/dri/renderD128", O_RDWR);

    if (ioctl(card, DRM_IOCTL_VIRTGPU_RESOURCE_CREATE, &question) == 0) {
        answer.handle = question.bo_handle;
        ioctl(card, DRM_IOCTL_VIRTGPU_WAIT, &answer);
    }
    return card;
}

/*
 * What the driver still has under way when it goes is never freed: not what a pending question mentions, nor what
 * waits for the device's leave to be freed. So there must be no pending question, and the buffers are held
 * open until the device is gone and need not be asked.
 */
static void rebind_driver(void)
{
    struct dirent *entry;
    char device[256] = "";
    DIR *driver = opendir(DRIVER);
    int buffer, card;

    while (driver && (entry = readdir(driver)))
        if (!strncmp(entry->d_name, "virtio", 6))
            snprintf(device, sizeof device, "%s", entry->d_name);
    if (driver)
        closedir(driver);
    if (!*device)
        return;
    buffer = open("/dev/fb0", O_RDONLY);
    fsync(buffer);
    card = drain_device();
    write_file(DRIVER "unbind", device);
    close(card);
    close(buffer);
    write_file(DRIVER "bind", device);
}

/* Keeps the rows up to the cursor's when the new screen is lower, cuts or pads each row. */
static void carry_over(const struct screen *before, struct screen *after)
{
    unsigned skipped = before->y < after->rows ? 0 : before->y + 1u - after->rows;

    for (unsigned y = 0; y < after->rows; y++)
        for (unsigned x = 0; x < after->columns; x++) {
            unsigned char *cell = after->cells[y * after->columns + x];
            int known = y + skipped < before->rows && x < before->columns;
            memcpy(cell, known ? before->cells[(y + skipped) * before->columns + x] : (void *)" \x07", 2);
        }
    after->y = before->y - skipped;
    after->x = before->x < after->columns ? before->x : after->columns - 1;
}

/* Makes a frame buffer of the preferred size, with the text that is on the screen. */
static void renew_buffer(void)
{
    static struct screen before, after;
    int tty = open("/dev/tty0", O_RDWR | O_NOCTTY);
    int memory;

    ioctl(tty, TCXONC, TCOOFF);
    memory = open("/dev/vcsa0", O_RDWR);
    pread(memory, &before, sizeof before, 0);
    rebind_driver();
    if (pread(memory, &after, sizeof after, 0) > 4) {
        carry_over(&before, &after);
        pwrite(memory, &after, 4 + 2 * after.rows * after.columns, 0);
    }
    close(memory);
    ioctl(tty, TCXONC, TCOON);
    close(tty);
}

static void follow(void)
{
    /* A size that did not come the first time will not come the second: do not spin. */
    static struct size refused;
    struct wish wish = wished();

    if (!buffer_holds(wish.buffer) && memcmp(&wish.buffer, &refused, sizeof refused)) {
        renew_buffer();
        refused = buffer_holds(wish.buffer) ? (struct size){0, 0} : wish.buffer;
    }
    if (wish.screen.width && buffer_holds(wish.screen))
        fill(wish.screen);
}

static int is_hotplug(const char *event, size_t length)
{
    int drm = 0, hotplug = 0;
    for (const char *line = event; line < event + length; line += strlen(line) + 1) {
        drm |= !strcmp(line, "SUBSYSTEM=drm");
        hotplug |= !strcmp(line, "HOTPLUG=1");
    }
    return drm && hotplug;
}

/* Takes the kernel's events until there was none for `silence` milliseconds; tells whether it was about us. */
static int changed_within(int events, int silence)
{
    struct pollfd readable = {.fd = events, .events = POLLIN};
    char event[8192];
    int changed = 0;

    while (poll(&readable, 1, silence) > 0) {
        ssize_t length = recv(events, event, sizeof event - 1, MSG_DONTWAIT);
        event[length < 0 ? 0 : length] = 0;
        /* Without a length, more came than the socket holds. */
        changed |= length < 0 || is_hotplug(event, length);
        if (silence < 0)
            silence = SETTLE;
    }
    return changed;
}

int main(void)
{
    struct sockaddr_nl kernel_events = {.nl_family = AF_NETLINK, .nl_groups = 1};
    int events = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);

    if (events < 0 || bind(events, (struct sockaddr *)&kernel_events, sizeof kernel_events) < 0) {
        perror("kernel events");
        return 1;
    }
    follow();
    for (;;) {
        if (!changed_within(events, -1))
            continue;
        /* The kernel may learn the new size only after it told of the change. */
        do
            follow();
        while (changed_within(events, 5 * SETTLE));
        follow();
    }
}
