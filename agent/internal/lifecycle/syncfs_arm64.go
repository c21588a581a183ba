package lifecycle

// sysSyncfs is not in the syscall package for every architecture.
const sysSyncfs = 267
