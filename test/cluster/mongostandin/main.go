// Command mongostandin stands in for a replica set's programs where MongoDB cannot be had, so that examples/mongodb.yml can be
// deployed as it is. It is no database. What it shows is what the stack file and the volumes are responsible for: the command
// lines are as they should be, secrets arrive and are readable, names lead to the members that they name, and each member finds
// its own data again wherever it starts.
//
// Named mongod it is a member: it keeps in its data directory who it is and a journal of its starts, and refuses the data of
// another. Named mongosh it answers the two scripts of the stack file: the health check, and the one that initiates the set.
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
		fmt.Fprintln(os.Stderr, "stand-in:", err)
		os.Exit(1)
	}
}

func say(format string, args ...any) { fmt.Printf("stand-in: "+format+"\n", args...) }

// identity is who a member is, and the answer to "who". The data directory's journal has a line of it for each start, and one
// more for the initiation.
type identity struct {
	Name   string // the host name that it was first started under
	ID     string // drawn when the data directory was first used
	Set    string // the replica set's name
	Key    string // a digest of the key file
	Starts int    // this one included
	Config string // the hosts of the set, empty until it is initiated here
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
		return errors.New("a member wants --replSet, --keyFile and --bind_ip_all, and nothing without a dash")
	}
	key, err := readKey(*keyFile)
	if err != nil {
		return err
	}
	if os.Getenv("MONGO_INITDB_ROOT_USERNAME") != "" {
		if _, err := readSecret(os.Getenv("MONGO_INITDB_ROOT_PASSWORD_FILE")); err != nil {
			return fmt.Errorf("the first user's password: %w", err)
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
	for { // one client at a time is enough, and each has one line
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		conn.SetDeadline(time.Now().Add(5 * time.Second)) //nolint:errcheck // a client that hangs is the only loss
		line, _ := bufio.NewReader(conn).ReadString('\n')
		fmt.Fprintln(conn, answer(journal, me, strings.Fields(line)))
		conn.Close() //nolint:errcheck // the client has its answer or asks again
	}
}

// answer does what a client asks: "who", or "initiate HOSTS", which may be asked again.
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

// open reads the journal of a data directory, which is this member's or new, and adds this start.
func open(dir string, me identity) (*identity, *os.File, error) {
	journal, err := os.OpenFile(filepath.Join(dir, "journal"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, err
	}
	text, err := io.ReadAll(journal)
	whole := bytes.LastIndexByte(text, '\n') + 1 // what follows was being written when the power went, and counts for nothing
	if err := errors.Join(err, journal.Truncate(int64(whole))); err != nil {
		return nil, nil, err
	}
	for line := range bytes.Lines(text[:whole]) {
		var was identity
		if err := json.Unmarshal(line, &was); err != nil {
			return nil, nil, fmt.Errorf("the journal in %s has a line %q: %w", dir, line, err)
		}
		if was.Name != me.Name || was.Set != me.Set || was.Key != me.Key || me.Starts > 0 && was.ID != me.ID {
			return nil, nil, fmt.Errorf("the data in %s are another's, or under another key: %+v; this is %+v", dir, was, me)
		}
		if was.Starts > me.Starts+1 || was.Starts < me.Starts {
			return nil, nil, fmt.Errorf("the journal in %s leaps from start %d to %d", dir, me.Starts, was.Starts)
		}
		me = was
	}
	say("%s found its own data of %d earlier starts", me.Name, me.Starts) // none: an empty directory
	me.Starts++
	return &me, journal, write(journal, &me)
}

// write adds a line to the journal. It has reached the disk when write returns.
func write(journal *os.File, me *identity) error {
	text, err := json.Marshal(me)
	if err != nil {
		return err
	}
	if _, err := journal.Write(append(text, '\n')); err != nil {
		return err
	}
	return unix.Syncfs(int(journal.Fd())) // the file's name too, which is new at the first start
}

// readKey returns a digest of a key file, with the demands that MongoDB has.
func readKey(path string) (string, error) {
	key, err := readSecret(path)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	base64 := regexp.MustCompile(`^[A-Za-z0-9+/=\s]{6,}$`)
	if err == nil && (info.Mode().Perm()&0o077 != 0 || len(key) > 1024 || !base64.MatchString(key)) {
		err = fmt.Errorf("%s, mode %v, is to be its owner's alone, and 6 to 1024 characters of base64", path, info.Mode())
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

// shell is mongosh. Of JavaScript it knows what it looks for in the two scripts.
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
		return errors.New("this is neither the health check nor the script that initiates the set")
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
			return fmt.Errorf("%s answers %q: %w", match[1], reply, err)
		}
		if is.Name != match[1] || !strings.Contains(*script, `_id: "`+is.Set+`"`) || slices.Contains(ids, is.ID) {
			return fmt.Errorf("who answers at %s is another: %s", match[1], reply)
		}
		say("%s answers: id %s, key %s, start %d", is.Name, is.ID, is.Key, is.Starts)
		hosts, ids = append(hosts, is.Name), append(ids, is.ID)
	}
	reply, err := ask(*host, "initiate "+strings.Join(hosts, ","))
	if err != nil {
		return err
	}
	say("%d members; as a set they are: %s", len(hosts), reply)
	if reply != "new" && reply != "known" {
		return errors.New("the set cannot be initiated")
	}
	return nil
}

// ask sends one line and returns the line that comes back.
func ask(host, request string) (string, error) {
	conn, err := net.DialTimeout("tcp", host+":27017", 3*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()                                //nolint:errcheck // the answer is there or not
	conn.SetDeadline(time.Now().Add(3 * time.Second)) //nolint:errcheck // then it waits for ever, and the health check's limit ends it
	fmt.Fprintln(conn, request)
	reply, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(reply), err
}
