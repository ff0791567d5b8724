// Command simpleprovider is a store that Synclave can sync: names and texts in one JSON file. See README.md.
//
// Usage: simpleprovider FILE [HOST:PORT]. The first line that it prints is its address.
package main

//go:generate ./generate.sh

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "synclave.example/simpleprovider/gen/synclave/v1"
)

const chunkSize = 256 * 1024 // bytes of content in one message; a message takes 4 MiB

type store struct {
	pb.UnimplementedSimpleSyncProviderServiceServer
	path, instance string
	id             []byte
	mutex          sync.Mutex
}

func open(path string) (*store, error) {
	// Tells this store from all others, for ever.
	id, err := os.ReadFile(path + ".id")
	if errors.Is(err, os.ErrNotExist) {
		id = []byte(rand.Text())
		err = os.WriteFile(path+".id", id, 0o644)
	}
	return &store{path: path, instance: rand.Text(), id: id}, err
}

// Any value will do that changes when the item does. This store keeps nothing but the text.
func version(text string) []byte {
	digest := sha256.Sum256([]byte(text))
	return digest[:]
}

func (s *store) read() (map[string]string, error) {
	items := map[string]string{}
	content, err := os.ReadFile(s.path)
	if errors.Is(err, os.ErrNotExist) {
		return items, nil
	}
	if err == nil {
		err = json.Unmarshal(content, &items)
	}
	return items, err
}

// All of the file or nothing of it, and durable: only then an item is answered as stored.
func (s *store) save(items map[string]string) error {
	content, err := json.MarshalIndent(items, "", "  ")
	if err != nil {
		return err
	}
	file, err := os.Create(s.path + ".tmp")
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	return os.Rename(s.path+".tmp", s.path)
}

// change reads the items, lets them be changed, and saves them, as one step among others of this process.
func (s *store) change(change func(items map[string]string) error) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	items, err := s.read()
	if err != nil {
		return err
	}
	if err := change(items); err != nil {
		return err
	}
	return s.save(items)
}

// find gives the text of an item that is there and at the version that the caller expects.
func find(items map[string]string, id, expected []byte) (string, error) {
	text, found := items[string(id)]
	if !found {
		return "", status.Error(codes.NotFound, "there is no such item")
	}
	if string(version(text)) != string(expected) {
		return "", status.Error(codes.Aborted, "the item has changed")
	}
	return text, nil
}

// part is a message of an insert or update.
type part[S any] interface {
	GetStart() S
	GetChunk() []byte
	GetEnd() *pb.ItemDataEnd
}

// receive gives what comes with an insert or update: start, chunks, and an end without which nothing counts.
func receive[S interface{ GetItemId() []byte }, P part[S]](next func() (P, error)) (start S, text string, err error) {
	var content []byte
	for first := true; ; first = false {
		message, err := next()
		if errors.Is(err, io.EOF) {
			return start, "", status.Error(codes.InvalidArgument, "the data has no end")
		}
		if err != nil {
			return start, "", err
		}
		if first {
			start = message.GetStart()
		}
		if end := message.GetEnd(); end != nil {
			if size := len(start.GetItemId()); size < 1 || size > 4096 {
				return start, "", status.Error(codes.InvalidArgument, "an id has 1 to 4,096 bytes")
			}
			if string(version(string(content))) != string(end.GetContentDigest()) {
				return start, "", status.Error(codes.InvalidArgument, "the content is not what was announced")
			}
			if !utf8.Valid(content) || !utf8.Valid(start.GetItemId()) {
				return start, "", status.Error(codes.InvalidArgument, "this store holds text, and this is none")
			}
			return start, string(content), nil
		}
		content = append(content, message.GetChunk()...)
	}
}

func (s *store) GetSchema(context.Context, *pb.GetSchemaRequest) (*pb.GetSchemaResponse, error) {
	name := strings.TrimSuffix(filepath.Base(s.path), ".json")
	return &pb.GetSchemaResponse{StoreId: s.id, InstanceId: s.instance, MemberName: name}, nil
}

func (s *store) EnumerateItems(
	_ *pb.EnumerateItemsRequest, stream grpc.ServerStreamingServer[pb.EnumerateItemsResponse],
) error {
	items, err := s.read()
	if err != nil {
		return err
	}
	for name, text := range items {
		item := &pb.SimpleItem{ItemId: []byte(name), ItemVersion: version(text)}
		event := &pb.EnumerateItemsResponse_Items{Items: &pb.SimpleItems{Items: []*pb.SimpleItem{item}}}
		if err := stream.Send(&pb.EnumerateItemsResponse{Event: event}); err != nil {
			return err
		}
	}
	complete := &pb.EnumerateItemsResponse_Complete{Complete: &pb.EnumerationComplete{}}
	return stream.Send(&pb.EnumerateItemsResponse{Event: complete})
}

func (s *store) LoadItem(request *pb.LoadItemRequest, stream grpc.ServerStreamingServer[pb.LoadItemResponse]) error {
	items, err := s.read()
	if err != nil {
		return err
	}
	text, err := find(items, request.GetItemId(), request.GetExpectedItemVersion())
	if err != nil {
		return err
	}
	size := uint64(len(text))
	header := &pb.LoadItemResponse_Header{Header: &pb.ItemDataHeader{ContentSize: size}}
	if err := stream.Send(&pb.LoadItemResponse{Part: header}); err != nil {
		return err
	}
	for at := request.GetOffset(); at < size; at += chunkSize {
		chunk := &pb.LoadItemResponse_Chunk{Chunk: []byte(text[at:min(at+chunkSize, size)])}
		if err := stream.Send(&pb.LoadItemResponse{Part: chunk}); err != nil {
			return err
		}
	}
	end := &pb.LoadItemResponse_End{End: &pb.ItemDataEnd{ContentDigest: version(text)}}
	return stream.Send(&pb.LoadItemResponse{Part: end})
}

func (s *store) InsertItem(stream grpc.ClientStreamingServer[pb.InsertItemRequest, pb.InsertItemResponse]) error {
	start, text, err := receive[*pb.InsertItemStart](stream.Recv)
	if err != nil {
		return err
	}
	err = s.change(func(items map[string]string) error {
		if _, found := items[string(start.GetItemId())]; found {
			return status.Error(codes.AlreadyExists, "there is such an item")
		}
		items[string(start.GetItemId())] = text
		return nil
	})
	if err != nil {
		return err
	}
	return stream.SendAndClose(&pb.InsertItemResponse{ItemVersion: version(text)})
}

func (s *store) UpdateItem(stream grpc.ClientStreamingServer[pb.UpdateItemRequest, pb.UpdateItemResponse]) error {
	start, text, err := receive[*pb.UpdateItemStart](stream.Recv)
	if err != nil {
		return err
	}
	err = s.change(func(items map[string]string) error {
		_, err := find(items, start.GetItemId(), start.GetExpectedItemVersion())
		items[string(start.GetItemId())] = text
		return err
	})
	if err != nil {
		return err
	}
	return stream.SendAndClose(&pb.UpdateItemResponse{ItemVersion: version(text)})
}

func (s *store) DeleteItem(_ context.Context, request *pb.DeleteItemRequest) (*pb.DeleteItemResponse, error) {
	err := s.change(func(items map[string]string) error {
		_, err := find(items, request.GetItemId(), request.GetExpectedItemVersion())
		delete(items, string(request.GetItemId()))
		return err
	})
	if err != nil {
		return nil, err
	}
	return &pb.DeleteItemResponse{}, nil
}

func main() {
	if len(os.Args) < 2 {
		log.Fatal("usage: simpleprovider FILE [HOST:PORT]")
	}
	address := "127.0.0.1:0"
	if len(os.Args) > 2 {
		address = os.Args[2]
	}
	store, err := open(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterSimpleSyncProviderServiceServer(server, store)
	fmt.Printf("http://%s\n", listener.Addr())
	log.Fatal(server.Serve(listener))
}
