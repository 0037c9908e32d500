#!/bin/sh
# Puts promtool (checks our Prometheus files) into VENV/bin, from the Debian package, without installing a service.
# usage: promtool.sh VENV
set -eu
venv=$1
[ -x "$venv/bin/promtool" ] && exit 0
if found=$(command -v promtool); then ln -sf "$found" "$venv/bin/promtool"; exit 0; fi
command -v apt-get >/dev/null || {
  echo "promtool.sh: no promtool on this machine and no apt-get to fetch it: install Prometheus and run again" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq prometheus >/dev/null 2>&1 || { apt-get update -qq; apt-get download -qq prometheus; }
dpkg -x prometheus_*.deb unpacked
cd - >/dev/null
install -m 755 "$work/unpacked/usr/bin/promtool" "$work/unpacked/usr/bin/prometheus" "$venv/bin/"
