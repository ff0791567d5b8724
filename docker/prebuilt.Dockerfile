# The image of docker/Dockerfile, around a static binary that is there already: DIR holds it, and an empty directory `data`.
#
#   docker build -f docker/prebuilt.Dockerfile -t synclave DIR
#
# A file of its own, as classic builders run every stage of a file whether it is needed or not. What is set below is explained
# there; docker/test.sh sees to it that it stays the same.
ARG BASE=scratch

FROM ${BASE}
COPY synclave /usr/local/bin/synclave
COPY --chown=65532:65532 data /data
USER 65532:65532
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/synclave"]
CMD ["serve", "--data-dir", "/data"]
EXPOSE 50051
HEALTHCHECK --interval=5s --timeout=5s --start-period=15s --retries=3 CMD ["/usr/local/bin/synclave", "health"]
