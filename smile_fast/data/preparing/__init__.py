"""The parts of `prepare`: what a case becomes, when it is done already, and how processes share the cases."""
