"""Runs on other machines: what is sent to a cluster, checked before it is, and heard of after."""
