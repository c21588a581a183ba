// Package connect speaks the Connect protocol, version 1, with the JSON codec: what E2B's clients send.
// https://connectrpc.com/docs/protocol
package connect

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"syscall"

	"sandkeep/agent/internal/account"
)

// Code is a Connect error code.
type Code string

// The codes that the agent uses.
const (
	InvalidArgument    Code = "invalid_argument"
	Unauthenticated    Code = "unauthenticated"
	PermissionDenied   Code = "permission_denied"
	NotFound           Code = "not_found"
	AlreadyExists      Code = "already_exists"
	FailedPrecondition Code = "failed_precondition"
	OutOfRange         Code = "out_of_range"
	ResourceExhausted  Code = "resource_exhausted"
	DeadlineExceeded   Code = "deadline_exceeded"
	Unimplemented      Code = "unimplemented"
	Internal           Code = "internal"
)

var statusOf = map[Code]int{
	InvalidArgument: http.StatusBadRequest, Unauthenticated: http.StatusUnauthorized, PermissionDenied: http.StatusForbidden,
	NotFound: http.StatusNotFound, AlreadyExists: http.StatusConflict, FailedPrecondition: http.StatusBadRequest,
	OutOfRange: http.StatusBadRequest, ResourceExhausted: http.StatusTooManyRequests, DeadlineExceeded: http.StatusGatewayTimeout,
	Unimplemented: http.StatusNotFound, Internal: http.StatusInternalServerError,
}

// Error is a failure as a client sees it.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }

// Errorf makes an Error.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// From gives any error a code: its own, or what the kernel's answer means to a client.
func From(err error) *Error {
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	code := Internal
	switch {
	case errors.Is(err, account.ErrUnknown):
		code = Unauthenticated
	case errors.Is(err, account.ErrPath), errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.ELOOP),
		errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.EINVAL):
		code = InvalidArgument
	case errors.Is(err, fs.ErrNotExist):
		code = NotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		code = PermissionDenied
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		code = ResourceExhausted
	}
	return &Error{Code: code, Message: err.Error()}
}
