mod fetching;
mod rounds;
mod web;
