# oe-core's; nothing of it is looked at here.
