//! The one writer of a volume: membership, write path, read choice, rebuild
