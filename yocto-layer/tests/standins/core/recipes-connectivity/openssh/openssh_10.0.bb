# oe-core: SSH on a socket, and an ECDSA key.
PACKAGECONFIG ??= "systemd-sshd-socket-mode hostkey-ecdsa"
