"""An emulated homelab on one Linux box: hosts are network namespaces, cables are shaped veths."""
