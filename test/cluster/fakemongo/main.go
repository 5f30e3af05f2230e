// Command fakemongo replaces mongod and mongosh, which Debian does not have, to test examples/mongodb.yml unchanged.
//
// It is not a database. It checks what the stack file and the volumes are responsible for: the command lines are right, secrets can
// be read, names resolve to the right members, and each member finds its own data on every node.
//
// As mongod it is a member: it keeps its identity and a journal of its starts in the data directory, and rejects the data of another
// member. As mongosh it runs the two scripts of the stack file: the health check and the initiation of the set.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	serve := member
	if filepath.Base(os.Args[0]) == "mongosh" {
		serve = shell
	}
	if err := serve(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "fakemongo:", err)
		os.Exit(1)
	}
}

func logf(format string, args ...any) { fmt.Printf("fakemongo: "+format+"\n", args...) }

// identity identifies a member. It is the answer to "who", and a line of the journal: one for each start and one for the initiation.
type identity struct {
	Name   string // the host name at the first start
	ID     string // random, from the first start
	Set    string // the replica set's name
	Key    string // a digest of the key file
	Starts int    // including this one
	Config string // the hosts of the set; empty until it is initiated
}

// member is mongod.
func member(args []string) error {
	flags := flag.NewFlagSet("mongod", flag.ContinueOnError)
	set := flags.String("replSet", "", "")
	keyFile := flags.String("keyFile", "", "")
	all := flags.Bool("bind_ip_all", false, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *set == "" || *keyFile == "" || !*all || flags.NArg() > 0 {
		return errors.New("mongod needs --replSet, --keyFile and --bind_ip_all, and no other arguments")
	}
	key, err := readKey(*keyFile)
	if err != nil {
		return err
	}
	if os.Getenv("MONGO_INITDB_ROOT_USERNAME") != "" {
		if _, err := readSecret(os.Getenv("MONGO_INITDB_ROOT_PASSWORD_FILE")); err != nil {
			return fmt.Errorf("root password: %w", err)
		}
	}
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	me, journal, err := open("/data/db", identity{Name: name, ID: rand.Text(), Set: *set, Key: key})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", ":27017")
	if err != nil {
		return err
	}
	stopped, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(stopped, func() { os.Exit(0) })
	for { // one client at a time, and one line from each
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		conn.SetDeadline(time.Now().Add(5 * time.Second)) //nolint:errcheck // without it, only a hanging client is a problem
		line, _ := bufio.NewReader(conn).ReadString('\n')
		fmt.Fprintln(conn, answer(journal, me, strings.Fields(line)))
		conn.Close() //nolint:errcheck // the client retries
	}
}

// answer handles a request: "who", or "initiate HOSTS", which can be repeated.
func answer(journal *os.File, me *identity, request []string) string {
	switch {
	case len(request) == 1 && request[0] == "who":
		text, _ := json.Marshal(me) //nolint:errchkjson // strings and a number
		return string(text)
	case len(request) == 2 && request[0] == "initiate" && me.Config == request[1]:
		return "known"
	case len(request) == 2 && request[0] == "initiate" && me.Config == "":
		me.Config = request[1]
		if err := write(journal, me); err != nil {
			return err.Error()
		}
		return "new"
	default:
		return fmt.Sprintf("refused: %q", request)
	}
}

// open reads the journal of a data directory and adds this start. It fails if the data is another member's.
func open(dir string, me identity) (*identity, *os.File, error) {
	journal, err := os.OpenFile(filepath.Join(dir, "journal"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, err
	}
	text, err := io.ReadAll(journal)
	whole := bytes.LastIndexByte(text, '\n') + 1 // the rest was being written when power was lost
	if err := errors.Join(err, journal.Truncate(int64(whole))); err != nil {
		return nil, nil, err
	}
	for line := range bytes.Lines(text[:whole]) {
		var was identity
		if err := json.Unmarshal(line, &was); err != nil {
			return nil, nil, fmt.Errorf("invalid line %[2]q in the journal in %[1]s: %[3]w", dir, line, err)
		}
		if was.Name != me.Name || was.Set != me.Set || was.Key != me.Key || me.Starts > 0 && was.ID != me.ID {
			return nil, nil, fmt.Errorf("the data in %s belongs to another member or key: %+v; this is %+v", dir, was, me)
		}
		if was.Starts > me.Starts+1 || was.Starts < me.Starts {
			return nil, nil, fmt.Errorf("the journal in %s jumps from start %d to %d", dir, me.Starts, was.Starts)
		}
		me = was
	}
	logf("%s found its own data of %d earlier starts", me.Name, me.Starts)
	me.Starts++
	return &me, journal, write(journal, &me)
}

// write adds a line to the journal and syncs it.
func write(journal *os.File, me *identity) error {
	text, err := json.Marshal(me)
	if err != nil {
		return err
	}
	if _, err := journal.Write(append(text, '\n')); err != nil {
		return err
	}
	return unix.Syncfs(int(journal.Fd())) // includes the directory entry, which is new at the first start
}

// readKey returns a digest of a key file. It checks what MongoDB checks.
func readKey(path string) (string, error) {
	key, err := readSecret(path)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	base64 := regexp.MustCompile(`^[A-Za-z0-9+/=\s]{6,}$`)
	if err == nil && (info.Mode().Perm()&0o077 != 0 || len(key) > 1024 || !base64.MatchString(key)) {
		err = fmt.Errorf("%s (mode %v) must be readable by its owner only and have 6 to 1024 characters of base64", path, info.Mode())
	}
	digest := sha256.Sum256([]byte(key))
	return hex.EncodeToString(digest[:4]), err
}

func readSecret(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err == nil && len(text) == 0 {
		err = fmt.Errorf("%s is empty", path)
	}
	return string(text), err
}

// shell is mongosh. It recognises the two scripts by text and evaluates no JavaScript.
func shell(args []string) error {
	flags := flag.NewFlagSet("mongosh", flag.ContinueOnError)
	host := flags.String("host", "localhost", "")
	script := flags.String("eval", "", "")
	flags.Bool("quiet", false, "")
	flags.Bool("norc", false, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch initiates := strings.Contains(*script, "rs.initiate"); {
	case flags.NArg() > 0, !initiates && !strings.Contains(*script, "ping"):
		return errors.New("the script is neither the health check nor the initiation of the set")
	case !initiates:
		_, err := ask(*host, "who")
		return err
	}
	for _, path := range regexp.MustCompile(`readFileSync\("(.*?)"`).FindAllStringSubmatch(*script, -1) {
		if _, err := readSecret(path[1]); err != nil {
			return err
		}
	}
	var hosts, ids []string
	for _, match := range regexp.MustCompile(`host: "(.*?):27017"`).FindAllStringSubmatch(*script, -1) {
		reply, err := ask(match[1], "who")
		if err != nil {
			return err
		}
		var is identity
		if err := json.Unmarshal([]byte(reply), &is); err != nil {
			return fmt.Errorf("invalid answer %[2]q from %[1]s: %[3]w", match[1], reply, err)
		}
		if is.Name != match[1] || !strings.Contains(*script, `_id: "`+is.Set+`"`) || slices.Contains(ids, is.ID) {
			return fmt.Errorf("another member answers at %s: %s", match[1], reply)
		}
		logf("%s answers: id %s, key %s, start %d", is.Name, is.ID, is.Key, is.Starts)
		hosts, ids = append(hosts, is.Name), append(ids, is.ID)
	}
	reply, err := ask(*host, "initiate "+strings.Join(hosts, ","))
	if err != nil {
		return err
	}
	logf("%d members; the set is %s", len(hosts), reply)
	if reply != "new" && reply != "known" {
		return errors.New("the set cannot be initiated")
	}
	return nil
}

// ask sends a line to a member and returns the line that it answers.
func ask(host, request string) (string, error) {
	conn, err := net.DialTimeout("tcp", host+":27017", 3*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()                                //nolint:errcheck // the answer has been read
	conn.SetDeadline(time.Now().Add(3 * time.Second)) //nolint:errcheck // without it, the health check's timeout applies
	fmt.Fprintln(conn, request)
	reply, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(reply), err
}
