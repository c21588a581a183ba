package process

import (
	"os"
	"syscall"

	"sandkeep/agent/internal/ring"
)

// plumbing is one process's descriptors: the child's ends until it runs, ours afterwards.
type plumbing struct {
	child  [3]uintptr
	close  []int // the child's ends, to be closed here once it has them
	output []output
	input  *os.File // nil without stdin or terminal
}

// output is one descriptor that is read into the ring.
type output struct {
	file   *os.File
	stream ring.Stream
}

func connectTerminal(uid uint32, size Size) (*plumbing, error) {
	master, slave, err := OpenTerminal(uid, size)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(master), "pty")
	end := uintptr(slave)
	return &plumbing{child: [3]uintptr{end, end, end}, close: []int{slave}, output: []output{{file, ring.PTY}}, input: file}, nil
}

func connectPipes(stdin bool) (p *plumbing, err error) {
	p = &plumbing{}
	defer func() {
		if err != nil {
			p.abandon()
		}
	}()
	if stdin {
		ours, theirs, err := pipe(true)
		if err != nil {
			return p, err
		}
		p.child[0], p.close, p.input = uintptr(theirs), append(p.close, theirs), ours
	} else {
		null, err := syscall.Open("/dev/null", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err != nil {
			return p, err
		}
		p.child[0], p.close = uintptr(null), append(p.close, null)
	}
	for index, stream := range []ring.Stream{ring.Stdout, ring.Stderr} {
		ours, theirs, err := pipe(false)
		if err != nil {
			return p, err
		}
		p.child[index+1], p.close = uintptr(theirs), append(p.close, theirs)
		p.output = append(p.output, output{ours, stream})
	}
	return p, nil
}

// pipe makes our end non-blocking and leaves the child's as programs expect it: the flag is per end.
func pipe(weWrite bool) (ours *os.File, theirs int, err error) {
	var ends [2]int
	if err := syscall.Pipe2(ends[:], syscall.O_CLOEXEC); err != nil {
		return nil, -1, err
	}
	mine, theirs := ends[0], ends[1]
	if weWrite {
		mine, theirs = ends[1], ends[0]
	}
	_ = syscall.SetNonblock(mine, true)
	return os.NewFile(uintptr(mine), "pipe"), theirs, nil
}

// handOver closes the child's ends.
func (p *plumbing) handOver() {
	for _, fd := range p.close {
		syscall.Close(fd)
	}
	p.close = nil
}

// abandon closes everything, after a failed start.
func (p *plumbing) abandon() {
	p.handOver()
	for _, o := range p.output {
		o.file.Close()
	}
	if p.input != nil {
		p.input.Close()
	}
}
