"""What tests of batchtrain, and of storages it runs on, may use: ranks, faults, chaos."""
