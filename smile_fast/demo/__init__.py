"""`make demo`: the whole way from partly annotated scans to segmented volumes, on phantoms or on real CT."""
