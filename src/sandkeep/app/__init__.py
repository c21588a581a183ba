"""The composition root: settings, wiring, the daemons, setup. The only place that chooses drivers."""
