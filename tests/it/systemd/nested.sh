#!/bin/sh
# Becomes systemd, as process 1 of namespaces and a cgroup of its own, with the units of scripts/deploy and next to no others:
# nothing of it reaches the machine. Exit status 77 if the machine does not allow it. Not to be run by hand: see real.rs.
# usage: tests/it/systemd/nested.sh PROGRAM DEPLOY CGROUP
set -eu
program=$1 deploy=$2 cgroup=$3
if [ $# -eq 3 ]; then
    mkdir "$cgroup" && echo $$ >"$cgroup/cgroup.procs" || exit 77
    unshare --pid --mount --net --uts --ipc --cgroup --fork --mount-proc true || exit 77
    exec unshare --pid --mount --net --uts --ipc --cgroup --fork --mount-proc --kill-child "$0" "$@" inside
fi
mount --make-rprivate / || exit 77
ip link set lo up || exit 77
umount -R /sys/fs/cgroup || exit 77
mount -t cgroup2 none /sys/fs/cgroup || exit 77
mount --bind /proc/sys /proc/sys || exit 77
mount -o remount,ro,bind /proc/sys || exit 77
# Where the repository is may be hidden by what is mounted next.
mount -t tmpfs tmpfs /mnt || exit 77
cp "$program" /mnt/tidemill
cp "$deploy"/tidemill.service "$deploy"/tidemill.socket /mnt/
for unit in basic multi-user network-online shutdown sockets sysinit; do
    # What they would pull in does not exist here.
    sed '/^\(Requires\|Wants\|After\|Conflicts\)=/d' /usr/lib/systemd/system/$unit.target >/mnt/$unit.target
done
mkdir /mnt/tidemill.service.d /mnt/empty /mnt/upper /mnt/work
# So that the watchdog need not be waited for, that a test can see the log, and may restart as often as it likes.
printf '[Unit]\nStartLimitIntervalSec=0\n[Service]\nWatchdogSec=3s\nStandardError=append:/run/log\n' >/mnt/tidemill.service.d/test.conf
printf '[Unit]\nDefaultDependencies=no\n' >/mnt/nested.target
mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work /etc || exit 77
printf 'port = 0\nunix = "/run/tidemill/socket"\n' >/etc/tidemill.toml
mount -t tmpfs tmpfs /usr/local/bin || exit 77
cp /mnt/tidemill /usr/local/bin/tidemill
mount -t tmpfs tmpfs /run || exit 77
mount --bind /mnt/empty /etc/systemd/system || exit 77
mount --bind /mnt /usr/lib/systemd/system || exit 77
container=test exec /lib/systemd/systemd --system --unit=nested.target --log-target=console --show-status=0
