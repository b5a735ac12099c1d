# meta-tegra: its service marks the slot good at each start.
SYSTEMD_AUTO_ENABLE ??= "enable"
