#!/bin/sh
# Starts a command as a container of the manifests does: another user, no capabilities, a read-only root, and a /tmp of its
# own. It needs root, and runs in a mount namespace of its own:
#
#     BASE=... CLOSED=... WRITABLE=... unshare --mount confined.sh COMMAND...
#
# BASE is the folder of the Python that environments are made from. CLOSED is the folder above it that other users may not
# enter, if there is one: it is covered by an empty one that shows nothing but BASE.
# WRITABLE is a folder that stays writable, as a volume does; or nothing.
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=1777 tmpfs /tmp
if [ -n "$CLOSED" ]; then
    mkdir /tmp/.base
    mount --bind "$BASE" /tmp/.base
    mount -t tmpfs -o mode=755 tmpfs "$CLOSED"
    mkdir -p "$BASE"
    mount --bind /tmp/.base "$BASE"
    mount -o remount,bind,ro "$CLOSED"
fi
if [ -n "$WRITABLE" ]; then mount --bind "$WRITABLE" "$WRITABLE"; fi
mount -o remount,bind,ro /
exec setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
