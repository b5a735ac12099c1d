# meta-raspberrypi: the script that U-Boot runs.
SRC_URI = "file://boot.cmd.in"
