// The agent: pid 1 in every sandbox. See PROTOCOL.md.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"

	"sandkeep/agent/internal/elevate"
	"sandkeep/agent/internal/process"
	"sandkeep/agent/internal/server"
	"sandkeep/agent/internal/settings"
)

// version is E2B's envd version that the protocol matches.
const version = "0.6.13"

const (
	prSetDumpable  = 4
	softMemory     = 192 << 20
	maxProcessors  = 2
	gracefulSignal = syscall.SIGTERM
)

func main() {
	if filepath.Base(os.Args[0]) == "sudo" {
		os.Exit(elevate.Client(os.Args[1:]))
	}
	port := flag.Int("port", 49983, "TCP port to listen on")
	printVersion := flag.Bool("version", false, "print the protocol version and exit")
	flag.Parse()
	if *printVersion {
		fmt.Println(version)
		return
	}
	harden()
	// Every processor in use is a thread that gVisor has to run; the agent moves bytes and needs few.
	runtime.GOMAXPROCS(min(runtime.NumCPU(), maxProcessors))
	debug.SetMemoryLimit(softMemory)

	store := settings.NewStore()
	table := process.NewTable(store)
	go stopOnSignal(table)
	if os.Getpid() == 1 && elevate.Needed() {
		go func() { fmt.Fprintln(os.Stderr, "agent: sudo:", elevate.Serve(table.Reaper)) }()
	}
	if err := server.Serve(*port, store, table); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

// harden keeps the token from everybody without root, and the agent's descriptors from what it starts.
func harden() {
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prSetDumpable, 0, 0)
	process.SealDescriptors()
	process.Shield()
	syscall.Umask(0o022)
	_ = os.Chdir("/")
}

// stopOnSignal ends the sandbox in order: everything gets SIGTERM from us, and the kernel kills the rest with pid 1.
func stopOnSignal(table *process.Table) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	<-signals
	table.Shutdown(gracefulSignal)
	os.Exit(0)
}
