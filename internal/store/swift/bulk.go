// SPDX-License-Identifier: MIT

package swiftstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/ncw/swift/v2"

	"swiftnbd/internal/store"
)

// Info is what the cluster says about itself at /info. A cluster may refuse
// this to its users. Then nothing is known, and nothing optional is used.
type Info struct {
	Known   bool
	Version string // Swift's, or ""
	// BulkDelete says that there is a bulk delete, of at most MaxDeletes
	// names a request.
	BulkDelete bool
	MaxDeletes int
	// TempURL says that requests may have a key's signature instead of a token.
	// TempURLDigests are the digests that signatures may have ("sha256").
	TempURL        bool
	TempURLMethods []string
	TempURLDigests []string
	// MaxFileSize is the largest object in bytes, 0 where it is not known.
	MaxFileSize int64
	// Policies are the storage policies that a new container may have.
	Policies []Policy
	// rates are the limits of writes to a container; see WriteRate.
	rates []rate
}

// maxBulk bounds the names of one bulk request, so that it ends well within
// Options.Timeout.
const maxBulk = 1000

// maxInfo and maxBulkAnswer bound what is read of an answer.
const (
	maxInfo       = 1 << 20
	maxBulkAnswer = 8 << 20
)

// Info asks the cluster once what it can do, and keeps the answer. If the
// cluster does not tell (403, 404), Info.Known is false.
func (c *Client) Info(ctx context.Context) (Info, error) {
	c.mu.Lock()
	known := c.info
	c.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	t, err := c.token(ctx)
	if err != nil {
		return Info{}, fmt.Errorf("GET /info: %w", err)
	}
	target, err := infoURL(t.conn.StorageUrl)
	if err != nil {
		return Info{}, err
	}
	var info Info
	r := request{method: "GET", target: target}
	err = c.do(ctx, r, nil, func(x *exchange) error {
		body, err := io.ReadAll(io.LimitReader(x.stream, maxInfo))
		if err != nil {
			return readError(r.op(), x, len(body), err)
		}
		if isJSON(x.header.Get("Content-Type")) && !json.Valid(body) {
			// The answer was damaged on the way. It must not count as a
			// refusal, because a refusal is kept as long as we run.
			return &store.TransportError{Op: r.op(), Sent: true, Err: errors.New("the answer is no JSON, though it says so")}
		}
		info = parseInfo(body)
		return nil
	})
	var se *store.StatusError
	if errors.As(err, &se) && se.Code < 500 && !store.Transient(err) && !errors.Is(err, store.ErrUnauthorized) {
		err = nil // the cluster does not tell us
	}
	if err != nil {
		return Info{}, err
	}
	c.mu.Lock()
	c.info = &info
	c.mu.Unlock()
	return info, nil
}

// infoURL returns the URL of /info, which replaces the storage URL's path from
// its version ("/v1") on.
func infoURL(storageURL string) (string, error) {
	u, err := url.Parse(storageURL)
	if err != nil {
		return "", errors.New("the storage URL is malformed")
	}
	path := strings.TrimRight(u.Path, "/")
	if i := strings.LastIndex(path+"/", "/v1/"); i >= 0 {
		path = path[:i]
	} else {
		path = ""
	}
	u.Path, u.RawPath, u.RawQuery = path+"/info", "", ""
	return u.String(), nil
}

// isJSON says whether a Content-Type is that of JSON.
func isJSON(contentType string) bool {
	kind, _, err := mime.ParseMediaType(contentType)
	return err == nil && kind == "application/json"
}

func parseInfo(body []byte) Info {
	var answer struct {
		Swift struct {
			Version     string
			MaxFileSize int64 `json:"max_file_size"`
			Policies    []Policy
		}
		Ratelimit struct {
			Container [][2]float64 `json:"container_ratelimits"`
		}
		BulkDelete *struct {
			MaxDeletes int `json:"max_deletes_per_request"`
		} `json:"bulk_delete"`
		TempURL *struct {
			Methods []string
			Digests []string `json:"allowed_digests"`
		}
	}
	if json.Unmarshal(body, &answer) != nil {
		return Info{}
	}
	info := Info{Known: true, Version: answer.Swift.Version, MaxFileSize: max(0, answer.Swift.MaxFileSize), Policies: answer.Swift.Policies}
	for _, r := range answer.Ratelimit.Container {
		info.rates = append(info.rates, rate{r[0], r[1]})
	}
	if b := answer.BulkDelete; b != nil {
		// Ceph's gateway names no limit.
		info.BulkDelete, info.MaxDeletes = true, maxBulk
		if b.MaxDeletes > 0 {
			info.MaxDeletes = b.MaxDeletes
		}
	}
	if t := answer.TempURL; t != nil {
		info.TempURL, info.TempURLMethods, info.TempURLDigests = true, t.Methods, t.Digests
	}
	return info
}

// BulkDelete implements store.Store. It makes one request for every thousand
// names. After an error some of the names may have been deleted.
//
// Swift's TempURL knows no bulk delete, so it is not signed: of the fence, only our side
// holds.
func (c *container) BulkDelete(ctx context.Context, names []string) error {
	for _, name := range names {
		if err := c.check("BULK DELETE", name); err != nil {
			return err
		}
	}
	info, err := c.client.Info(ctx)
	if err != nil {
		return fmt.Errorf("BULK DELETE %s: %w", c.name, err)
	}
	if !info.BulkDelete {
		return fmt.Errorf("BULK DELETE %s: the cluster has none: %w", c.name, errors.ErrUnsupported)
	}
	chunk := min(info.MaxDeletes, maxBulk)
	for len(names) > 0 {
		n := min(chunk, len(names))
		if err := c.bulkDelete(ctx, names[:n]); err != nil {
			return err
		}
		names = names[n:]
	}
	return nil
}

func (c *container) bulkDelete(ctx context.Context, names []string) error {
	var body strings.Builder
	for _, name := range names {
		// PathEscape escapes slashes, and newlines, which would end the name.
		body.WriteString(url.PathEscape(c.name) + "/" + url.PathEscape(name) + "\n")
	}
	r := request{
		method: "POST", params: url.Values{"bulk-delete": {"1"}}, bulk: true,
		headers: swift.Headers{"Content-Type": "text/plain", "Accept": "application/json", "Content-Length": strconv.Itoa(body.Len())},
		body:    []byte(body.String()),
	}
	op := r.op() + " " + c.name
	if c.fence != nil {
		guarded, stop, err := c.fence.Guard(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		defer stop()
		ctx, r.fence = guarded, c.fence
	}
	// A name that is not found is a 404 like any other: see absent.go.
	return c.client.certain(ctx, op, func() (missing bool, err error) {
		err = c.client.withToken(ctx, r, nil, func(x *exchange) error {
			answer, err := io.ReadAll(io.LimitReader(x.stream, maxBulkAnswer))
			if err != nil {
				return readError(op, x, len(answer), err)
			}
			missing, err = bulkResult(op, answer)
			return err
		})
		return missing, err
	})
}

// bulkResult reads the answer to a bulk delete. Its HTTP status is 200 even
// after a failure. missing says that some of the names were not there.
func bulkResult(op string, body []byte) (missing bool, err error) {
	var answer struct {
		Status  string     `json:"Response Status"`
		Message string     `json:"Response Body"`
		Deleted int        `json:"Number Deleted"`
		Absent  int        `json:"Number Not Found"`
		Errors  [][]string `json:"Errors"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return false, &store.TransportError{Op: op, Sent: true, Err: fmt.Errorf("answer: %w", err)}
	}
	for _, e := range answer.Errors {
		if len(e) != 2 {
			continue
		}
		name, err := url.PathUnescape(e[0])
		if err != nil {
			name = e[0]
		}
		code := statusCode(e[1])
		found := &store.StatusError{Op: op + ": " + store.OneLine(name), Code: code, Body: errorText([]byte(e[1]))}
		if found.Err = deleteCodes[code]; found.Err == nil {
			found.Err = general[code]
		}
		if found.Err != nil {
			found.Body = "" // the status only
		}
		return false, found
	}
	if code := statusCode(answer.Status); code < 200 || code > 299 {
		// A bulk delete that found nothing at all is "404 Not Found".
		if code == http.StatusNotFound {
			return true, nil
		}
		return false, &store.StatusError{Op: op, Code: code, Body: errorText([]byte(answer.Message)), Err: general[code]}
	}
	return answer.Absent > 0, nil
}

// statusCode reads the number from "409 Conflict"; 0 where there is none.
func statusCode(status string) int {
	first, _, _ := strings.Cut(status, " ")
	code, err := strconv.Atoi(first)
	if err != nil {
		return 0
	}
	return code
}
