#!/bin/sh
# bootstrap.sh GROUP... - installs the Debian packages that a make target needs; silent when all are there.
# As root with apt-get, as a user with sudo, otherwise it says what to install. Groups are listed below.
set -eu

runtime="python3 python3-psutil python3-pyudev python3-systemd python3-cryptography python3-cbor2"
collector="python3-aiohttp openssl"
emulated="qemu-utils mmdebstrap e2fsprogs zstd netcat-openbsd"
tpm="swtpm tpm2-tools libtss2-tcti-swtpm0"
wanted=
for group in "$@"; do
    case $group in
        run)    wanted="$wanted $runtime $collector" ;;
        test)   wanted="$wanted $runtime $collector python3-pytest python3-pytest-xdist python3-hypothesis python3-aiosmtpd python3-paho-mqtt tzdata iproute2 procps" ;;
        services) wanted="$wanted mosquitto $tpm" ;;
        root)   wanted="$wanted nftables iproute2 util-linux e2fsprogs xfsprogs procps gcc libc6-dev" ;;
        scale)  wanted="$wanted python3-psycopg postgresql nats-server" ;;
        power)  wanted="$wanted qemu-system-common qemu-utils util-linux e2fsprogs" ;;
        deb)    wanted="$wanted dpkg-dev debhelper dh-python python3 lintian" ;;
        lint)   wanted="$wanted python3-venv" ;;
        newest) wanted="$wanted python3-venv python3-dev gcc pkg-config libsystemd-dev" ;;
        interop) wanted="$wanted python3-venv ruby ruby-cbor" ;;
        packages) wanted="$wanted piuparts autopkgtest" ;;
        device) wanted="$wanted mmdebstrap systemd-container util-linux e2fsprogs zstd iproute2" ;;
        emulated-arm64 | emulated-armhf) wanted="$wanted $emulated qemu-system-arm qemu-user-static binfmt-support arch-test" ;;
        emulated-amd64) wanted="$wanted $emulated qemu-system-x86" ;;
        *)      echo "bootstrap: unknown group $group" >&2; exit 64 ;;
    esac
done

missing=
for package in $wanted; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>&1) || state=absent
    [ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    sudo=
elif command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true; }; then
    sudo="sudo"
else
    echo "These Debian packages are missing, and you are neither root nor may you use sudo:" >&2
    echo "   $missing" >&2
    echo "Ask an administrator for:  apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
echo "Installing what is missing:$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install="apt-get -q -y -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=600 install --no-install-recommends"
if ! { $sudo apt-get -q update && $sudo env DEBIAN_FRONTEND=noninteractive $install $missing; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "bootstrap: apt-get did not succeed" >&2
    exit 1
fi
