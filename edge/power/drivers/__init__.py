"""What can press a host's button, behind one port."""
